"""Write what the run found: a page to read, methods for the paper, a record for the rerun."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from job import job, write_atomically, write_json
from report_tables import (
    CHANNELS,
    DROPPED,
    ELBO,
    EVIDENCE,
    FLAGGED,
    LIBRARY_SIZES,
    NONE,
    SAMPLES,
    SPLITS,
    digits,
    make_table,
    percent,
    whole,
)
from run_record import describe_run, package_versions, write_methods

STAGES = ("import", "preprocess", "library_size", "train", "prune", "embed", "anomaly")
MAX_ROWS = 200  # flagged cells in the report; anomaly/cells.tsv has them all
MAX_GENES = 6  # genes named for each of them
MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
# Bounds outside which depth is said to matter: at a nominal 5 %, half and twice of it.
MAX_DEPTH_SPEARMAN = 0.1
FALSE_POSITIVE_BAND = (0.025, 0.10)
# A run that must find more than 1 % anomalies to find any is blind to rare ones.
MAX_NEEDED = 0.01
# What each figure shows, in the order of the report; the name is that of its files.
FIGURES = {
    "qc": "Total counts, genes and mitochondrial share of each cell; dropped cells and limits.",
    "library_size": "Library size of each cell, by sample and by role.",
    "training": "ELBO of training and validation cells, KL weight and KL of each dimension.",
    "pruning": "Evidence for each latent dimension and held-out ELBO before and after the cut.",
    "latent": "UMAP of the latent space by sample, use, p-value and, where known, cell type.",
    "anomalies": "p-values, quantiles, score against depth and flagged share of each sample.",
}


def read_summaries(paths: Iterable[str | Path]) -> list[dict]:
    """All stages' summaries in the order of the stages, each with its ``stage`` and ``sample``.

    The stage is the last folder of the path that bears a stage's name; ``<sample>.summary.json``
    is of one sample, ``summary.json`` of all (``sample`` is then empty).
    """
    summaries = []
    for path in map(Path, paths):
        stage = next(part for part in reversed(path.parts[:-1]) if part in STAGES)
        sample = path.name.removesuffix("summary.json").removesuffix(".")
        content = json.loads(path.read_text(encoding="utf-8"))
        summaries.append({**content, "stage": stage, "sample": sample})
    # The samples of a stage come before the stage as a whole, as they ran.
    return sorted(summaries, key=lambda s: (STAGES.index(s["stage"]), s["sample"] == ""))


def of_stage(summaries: list[dict], stage: str) -> dict:
    """The summary of a whole stage; empty if there is none."""
    found = [s for s in summaries if s["stage"] == stage and not s["sample"]]
    return found[0] if found else {}


def collect_warnings(summaries: list[dict]) -> list[dict]:
    """Every warning with where it arose, parted at the first semicolon: what; what to do."""
    warnings = []
    for summary in summaries:
        where = " · ".join(filter(None, (summary["stage"].replace("_", " "), summary["sample"])))
        for line in summary.get("warnings", []):
            what, _, mend = line.partition("; ")
            warnings.append({"where": where, "what": what, "mend": mend})
    return warnings


def samples_table(summaries: list[dict], query: pd.DataFrame) -> pd.DataFrame:
    """One row a sample: format, genes, cells in the file, kept, query, flagged."""
    rows: dict[str, dict] = {}
    for summary in summaries:
        if summary["sample"] and summary["stage"] == "import":
            keys = ("format", "n_genes", "n_cells")
            rows[summary["sample"]] = {"sample": summary["sample"]}
            rows[summary["sample"]] |= {key: summary.get(key) for key in keys}
        elif summary["sample"] and summary["stage"] == "preprocess":
            rows.setdefault(summary["sample"], {"sample": summary["sample"]})
            rows[summary["sample"]]["n_kept"] = summary.get("n_kept")
    columns = ["sample", "format", "n_genes", "n_cells", "n_kept"]
    table = pd.DataFrame(list(rows.values()), columns=columns)
    counts = query.groupby(query["sample"].astype(str))["is_anomaly"].agg(["size", "sum"])
    table["n_query"] = table["sample"].map(counts["size"])
    table["n_flagged"] = table["sample"].map(counts["sum"])
    table["share"] = table["n_flagged"] / table["n_query"]
    return table


def dropped_table(summaries: list[dict]) -> pd.DataFrame:
    """What each limit of the quality control dropped, in each sample."""
    rows = [
        {"sample": summary["sample"], **limit}
        for summary in summaries
        if summary["stage"] == "preprocess" and summary["sample"]
        for limit in summary.get("dropped_by", [])
    ]
    table = pd.DataFrame(
        rows, columns=["sample", "quantity", "side", "limit", "origin", "n_dropped"]
    )
    table["side"] = table["side"].map({"lower": "below", "upper": "above"})
    return table


def flagged_table(query: pd.DataFrame, genes: pd.DataFrame) -> pd.DataFrame:
    """The flagged cells, the oddest first, each with its genes: up ↑, down ↓, the surest first."""
    flagged = query[query["is_anomaly"]].sort_values(
        ["p_value", "score", "cell_id"], ascending=[True, False, True]
    )
    flagged = flagged.head(MAX_ROWS).copy()
    hits = genes[genes["cell_id"].isin(flagged["cell_id"])].sort_values(
        ["p_value", "gene"], kind="stable"
    )
    arrows = hits["direction"].map({"up": "↑", "down": "↓"}).fillna("")
    named = (hits["gene"].astype(str) + arrows).groupby(hits["cell_id"])
    lists = named.agg(
        lambda names: (
            ", ".join(names.head(MAX_GENES))
            + (f" and {len(names) - MAX_GENES} more" if len(names) > MAX_GENES else "")
        )
    )
    flagged["genes"] = flagged["cell_id"].map(lists)
    return flagged


def judge(anomaly: dict, n_query: int) -> list[dict]:
    """What speaks for and against the p-values: a number, whether it is sound, how to read it."""
    checks = []
    if anomaly.get("smallest_p") is not None:
        needed = anomaly["alpha"] / max(n_query, 1)
        enough = max(1, int(-(-anomaly["smallest_p"] // needed)))
        checks.append({
            "name": "Smallest possible p-value", "value": digits(anomaly["smallest_p"]),
            "is_sound": anomaly.get("n_anomalies", 0) > 0 or enough <= max(1, MAX_NEEDED * n_query),
            "reading": f"1 / (calibration cells + 1). With it, at least {enough:,} of the "
            f"{n_query:,} query cells must be as odd as can be before any is flagged.",
        })  # fmt: skip
    if anomaly.get("spearman_depth") is not None:
        rho = anomaly["spearman_depth"]
        checks.append({
            "name": "Score against depth", "value": f"ρ = {rho:.2f}",
            "is_sound": abs(rho) <= MAX_DEPTH_SPEARMAN,
            "reading": "Spearman correlation of score and library size; near 0, a cell is not "
            f"odd for being deep or shallow (sound within ±{MAX_DEPTH_SPEARMAN}).",
        })  # fmt: skip
    rates = [rate for rate in anomaly.get("fpr_by_depth_fifth", []) if rate is not None]
    if rates:
        low, high = FALSE_POSITIVE_BAND
        checks.append({
            "name": "False positives by depth",
            "value": f"{percent(min(rates))} to {percent(max(rates))}",
            "is_sound": low <= min(rates) and max(rates) <= high,
            "reading": "Calibration cells with p ≤ 5 % in the fifths of library size; all "
            f"should be near 5 % (sound from {percent(low)} to {percent(high)}).",
        })  # fmt: skip
    return checks


def embed_figure(path: str | Path) -> str:
    """A figure as a data URI: inlined SVGs would share ids, and so clash with each other."""
    path = Path(path)
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{content}"


def flatten(settings: dict, prefix: str = "") -> list[tuple[str, str]]:
    """A nested config as ``key.key`` and value, in the order it came."""
    rows = []
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            rows.append((f"{prefix}{key}", shown))
    return rows


def report_content(tables: dict[str, pd.DataFrame], summaries: list[dict], figures) -> dict:
    """All that the template prints.

    ``tables``: cells, genes, evidence, elbo, channels, splits, samples_library, as the stages
    write them; ``figures``: paths, named as in ``FIGURES``, others are left out.
    """
    cells = tables["cells"]
    query = cells[cells["split"] == "query"]
    anomaly = of_stage(summaries, "anomaly")
    by_name = {Path(path).stem: path for path in figures}
    rates = anomaly.get("fpr_by_depth_fifth", [])
    return {
        "n_query": len(query),
        "n_flagged": int(query["is_anomaly"].sum()),
        "n_calibration": int((cells["split"] == "calibration").sum()),
        "smallest_q": digits(query["q_value"].min()) if len(query) else NONE,
        "alpha": percent(anomaly["alpha"]),
        "n_false": digits(anomaly["alpha"] * query["is_anomaly"].sum()),
        "checks": judge(anomaly, len(query)),
        "warnings": collect_warnings(summaries),
        "figures": {
            name: {"source": embed_figure(by_name[name]), "text": caption}
            for name, caption in FIGURES.items()
            if name in by_name
        },
        "samples": make_table(samples_table(summaries, query), SAMPLES),
        "dropped": make_table(dropped_table(summaries), DROPPED),
        "splits": make_table(tables["splits"], SPLITS),
        "library_sizes": make_table(tables["samples_library"], LIBRARY_SIZES),
        "evidence": make_table(tables["evidence"], EVIDENCE),
        "n_kept_dimensions": int(tables["evidence"]["kept"].sum()),
        "elbo": make_table(tables["elbo"], ELBO),
        "flagged": make_table(flagged_table(query, tables["genes"]), FLAGGED),
        "channels": make_table(tables["channels"], CHANNELS),
        "depth_fifths": [percent(rate) for rate in rates],
        "preprocess": of_stage(summaries, "preprocess"),
        "library_size": of_stage(summaries, "library_size"),
        "train": of_stage(summaries, "train"),
    }


def render(template: str, content: dict) -> str:
    """The page; every value from the data is escaped, and a name the content lacks is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"whole": whole, "digits": digits}
    return environment.from_string(template).render(content)


def _write_text(content: str, path: str) -> None:
    write_atomically(path, lambda partial: partial.write_text(content, encoding="utf-8"))


if __name__ == "__main__":
    with job(snakemake) as log:
        files, config = snakemake.input, snakemake.params.config
        tables = {name: pd.read_parquet(files[name]) for name in ("cells", "genes", "evidence")}
        tables |= {
            name: pd.read_csv(files[name], sep="\t", dtype={"sample": str})
            for name in ("elbo", "channels", "splits", "samples_library")
        }
        summaries = read_summaries(files.summaries)
        versions = package_versions(snakemake.params.versions)
        content = report_content(tables, summaries, files.figures)
        content |= {"run": config["run"], "settings": flatten(config), "versions": versions}
        template = (Path(snakemake.scriptdir).parent / "report" / "report.html").read_text(
            encoding="utf-8"
        )
        _write_text(render(template, content), snakemake.output.report)
        _write_text(write_methods(config, summaries), snakemake.output.methods)
        record = describe_run(
            config, versions, files.sources, of_stage(summaries, "train"), snakemake.threads
        )
        write_json(record, snakemake.output.run)
        log.info("%d of %d query cells flagged", content["n_flagged"], content["n_query"])
