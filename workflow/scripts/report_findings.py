"""What a reader needs first: what was found, how sure it is, what to worry about."""

import pandas as pd

from report_tables import digits, of_unit, percent, whole

MAX_SHOWN = 3  # patterns, and warnings, named on the first screen
# A warning of these stages speaks of the finding itself.
FIRST_STAGES = ("anomaly", "check")


def collect_warnings(summaries: list[dict]) -> list[dict]:
    """Every warning with where it arose, parted at the first semicolon: what; what to do."""
    warnings = []
    for summary in summaries:
        where = " · ".join(filter(None, (summary["stage"].replace("_", " "), summary["sample"])))
        for line in summary.get("warnings", []):
            what, _, mend = line.partition("; ")
            warnings.append({"where": where, "what": what, "mend": mend})
    return warnings


def first_warnings(warnings: list[dict]) -> list[dict]:
    """The few that the first screen shows: those of the finding before those of other stages.

    Of several with the same mend the first.
    """
    ordered = sorted(warnings, key=lambda warning: warning["where"] not in FIRST_STAGES)
    by_mend = {warning["mend"] or warning["what"]: warning for warning in reversed(ordered)}
    return [w for w in ordered if by_mend[w["mend"] or w["what"]] is w][:MAX_SHOWN]


def judge(anomaly: dict, unit: str = "cells") -> list[dict]:
    """What speaks for and against the p-values: a number, whether it is sound, how to read it.

    ``anomaly``: the summary of the anomaly stage, which brings the bands that its numbers should
    lie in.
    """
    if anomaly["is_ranking"]:
        return []
    needed, n_query = anomaly["needed_together"], anomaly["n_query"]
    reading = (
        f"With it, at least {needed:,} of the {n_query:,} query cells must be as odd as can be "
        "before any is flagged."
        if needed <= n_query
        else f"With it, none can be flagged: {needed:,} query cells would have to be as odd as can "
        f"be, and there are {n_query:,}."
    )
    band = anomaly["bands"]["spearman_depth"]
    low, high = anomaly["bands"]["fpr"]
    rates = anomaly["fpr_by_depth_fifth"]
    checks = [
        {
            "name": "Smallest possible p-value",
            "value": digits(anomaly["smallest_p"]),
            "is_sound": needed <= anomaly["bands"]["needed_together"],
            "reading": f"1 / (calibration cells + 1). {reading}",
        },
        _judge_depth("calibration cells", anomaly["spearman_depth"], band),
        _judge_depth("query cells not flagged", anomaly["spearman_depth_query"], band),
        {
            "name": "False positives by depth",
            "value": f"{percent(min(rates))} to {percent(max(rates))}",
            "is_sound": low <= min(rates) and max(rates) <= high,
            "reading": "Calibration cells with p ≤ 5 % in the fifths of library size; all "
            f"should be near 5 % (sound from {percent(low)} to {percent(high)}).",
        },
    ]
    said = {"name", "reading"}
    return [{k: of_unit(v, unit) if k in said else v for k, v in c.items()} for c in checks]


def _judge_depth(cells: str, rho: float, band: float) -> dict:
    return {
        "name": f"Score against depth, {cells}",
        "value": f"ρ = {rho:.2f}",
        "is_sound": abs(rho) <= band,
        "reading": "Spearman correlation of score and library size; near 0, a cell is not odd for "
        f"being deep or shallow (sound within ±{band:.2g}).",
    }


def _of_one(n: int, one: str) -> str:
    """``1 pattern``, ``1,234 patterns``."""
    return f"{whole(n)} {one}{'' if n == 1 else 's'}"


def what_was_found(
    patterns: pd.DataFrame, samples: pd.DataFrame, reasons: dict, genes: dict
) -> list[dict]:
    """Sentences, each with the section that has more; ``samples``: with the share flagged."""
    lines, one = [], genes["observations"].removesuffix("s")
    for row in patterns.head(MAX_SHOWN).itertuples():
        markers = f", marked by {row.label}" if row.label else ""
        near = f", nearest to {row.nearest_reference}" if row.nearest_reference else ""
        cells = _of_one(row.n_cells, one)
        lines.append({"text": f"{row.pattern}: {cells}{markers}{near}.", "to": "why"})
    rest = len(patterns) - MAX_SHOWN
    if rest > 0:
        lines.append({"text": f"{_of_one(rest, 'further pattern')}.", "to": "why"})
    if reasons["n_flagged"]:
        lines.append(
            {
                "text": f"{whole(reasons['n_without_cause'])} of {whole(reasons['n_flagged'])} "
                f"flagged {genes['observations']} show no technical cause: the candidates for new "
                "biology.",
                "to": "why",
            }
        )
    if genes["n_hits"]:
        lines.append(
            {
                "text": f"{_of_one(genes['n_hits'], 'outlier gene')} in "
                f"{_of_one(genes['n_with_outliers'], one)}.",
                "to": "genes",
            }
        )
    judged = samples[samples["n_query"] > 0]
    if len(judged) > 1 and judged["share"].max() > 0:
        most = judged.sort_values(["share", "sample"], ascending=[False, True]).iloc[0]
        lines.append(
            {"text": f"Most in {most['sample']}: {percent(most['share'])} of it.", "to": "found"}
        )
    return lines


def how_sure(anomaly: dict, checks: list[dict], check: dict, unit: str) -> list[dict]:
    """Sentences on what the numbers rest on; ``check``: its summary, empty if it was off."""
    lines = []
    if not anomaly["is_ranking"]:
        lines.append(
            {
                "text": f"p-values rest on {whole(anomaly['n_calibration'])} calibration {unit}; "
                f"the smallest there can be is {digits(anomaly['smallest_p'])}.",
                "to": "sure",
            }
        )
    if check.get("mean_power") is not None:
        lines.append(
            {
                "text": f"Of anomalies put into normal cells on purpose, "
                f"{percent(check['mean_power'])} were found, on average over kinds and strengths; "
                f"{percent(check['mean_fdp'])} of what was flagged there was normal (at most "
                f"{percent(check['alpha'])} should be).",
                "to": "check",
            }
        )
    elif check:
        lines.append({"text": "Too few normal cells to put anomalies into.", "to": "check"})
    doubtful = [c["name"][0].lower() + c["name"][1:] for c in checks if not c["is_sound"]]
    if checks:
        told = f"look closer at {', '.join(doubtful)}" if doubtful else "nothing to look into"
        n_sound = len(checks) - len(doubtful)
        lines.append({"text": f"{n_sound} of {len(checks)} checks sound: {told}.", "to": "sure"})
    if anomaly["is_ranking"]:
        lines.append(
            {"text": "No cell is known to be normal, so there is no error rate.", "to": "sure"}
        )
    return lines
