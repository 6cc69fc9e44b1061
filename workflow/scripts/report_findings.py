"""What a reader needs first: what was found, how sure it is, what to worry about."""

import pandas as pd

from bulk_words import of_unit
from report_tables import counted, digits, percent, whole

MAX_SHOWN = 3  # patterns, and warnings, named on the first screen
SOUND, DOUBTFUL, UNTOLD = "sound", "look closer", "too few cells"
# A band that is wider lets gross faults pass.
WIDEST = 0.5
# A warning of these stages speaks of the finding itself.
FIRST_STAGES = ("anomaly", "check")


def collect_warnings(summaries: list[dict]) -> list[dict]:
    """Every warning with where it arose, parted at the first semicolon: what; what to do.

    What is said of several samples, but for their names, is one warning.
    """
    said: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for summary in summaries:
        stage, sample = summary["stage"].replace("_", " "), summary["sample"]
        for line in summary.get("warnings", []):
            of_any = line.removeprefix(f"sample {sample}: ")
            said.setdefault((stage, of_any), []).append((sample, line))
    warnings = []
    for (stage, of_any), found in said.items():
        (sample, line), *others = found
        if others and sample:
            sample = counted(len(found), "sample")
            line = f"{', '.join(name for name, _ in found[:MAX_SHOWN])}"
            line += f"{', ...' if len(found) > MAX_SHOWN else ''}: {of_any}"
        what, _, mend = line.partition("; ")
        where = " · ".join(filter(None, (stage, sample)))
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
    """What speaks for and against the p-values: a number, a verdict on it, how to read it.

    ``anomaly``: the summary of the anomaly stage, which brings the bands that its numbers should
    lie in. Where these are too wide for a fault to leave them, the verdict is "too few cells".
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
            "verdict": _verdict(needed <= anomaly["bands"]["needed_together"]),
            "reading": f"1 / (calibration cells + 1). {reading}",
        },
        _judge_depth("calibration cells", anomaly["spearman_depth"], band),
        _judge_depth("query cells not flagged", anomaly["spearman_depth_query"], band),
        {
            "name": "False positives by depth",
            "value": f"{percent(min(rates))} to {percent(max(rates))}",
            "verdict": _verdict(low <= min(rates) and max(rates) <= high, high),
            "reading": "Calibration cells with p ≤ 5 % in the fifths of library size; all "
            f"should be near 5 % (sound from {percent(low)} to {percent(high)}).",
        },
    ]
    said = {"name", "verdict", "reading"}
    return [{k: of_unit(v, unit) if k in said else v for k, v in c.items()} for c in checks]


def _verdict(is_sound: bool, band: float = 0.0) -> str:
    """On a number that should lie in a band which goes so far."""
    return (UNTOLD if band > WIDEST else SOUND) if is_sound else DOUBTFUL


def _judge_depth(cells: str, rho: float, band: float) -> dict:
    return {
        "name": f"Score against depth, {cells}",
        "value": f"ρ = {rho:.2f}",
        "verdict": _verdict(abs(rho) <= band, band),
        "reading": "Spearman correlation of score and library size; near 0, a cell is not odd for "
        f"being deep or shallow (sound within ±{band:.2g}).",
    }


def what_was_found(
    patterns: pd.DataFrame, samples: pd.DataFrame, reasons: dict, genes: dict
) -> list[dict]:
    """Sentences, each with the section that has more; ``samples``: with the share flagged."""
    lines, one = [], genes["observations"].removesuffix("s")
    for row in patterns.head(MAX_SHOWN).itertuples():
        markers = f", marked by {row.label}" if row.label else ""
        near = f", nearest to {row.nearest_reference}" if row.nearest_reference else ""
        cells = counted(row.n_cells, one)
        lines.append({"text": f"{row.pattern}: {cells}{markers}{near}.", "to": "why"})
    rest = len(patterns) - MAX_SHOWN
    if rest > 0:
        lines.append({"text": f"{counted(rest, 'further pattern')}.", "to": "why"})
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
                "text": f"{counted(genes['n_hits'], 'outlier gene')} in "
                f"{counted(genes['n_with_outliers'], one)}.",
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
    doubtful = [c["name"][0].lower() + c["name"][1:] for c in checks if c["verdict"] == DOUBTFUL]
    n_sound = sum(c["verdict"] == SOUND for c in checks)
    if checks:
        told = [f"look closer at {', '.join(doubtful)}"] if doubtful else []
        if n_untold := len(checks) - n_sound - len(doubtful):
            told.append(f"too few {unit} to tell of {n_untold}")
        told = "; ".join(told) or "nothing to look into"
        lines.append({"text": f"{n_sound} of {len(checks)} checks sound: {told}.", "to": "sure"})
    if anomaly["is_ranking"]:
        lines.append(
            {"text": "No cell is known to be normal, so there is no error rate.", "to": "sure"}
        )
    return lines
