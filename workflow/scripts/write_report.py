"""Write what the run found: a page to read, methods for the paper."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from job import job, read_json, read_tsv, write_atomically
from methods import write_methods
from provenance import package_versions
from report_tables import (
    CHANNELS,
    CHECK,
    DOUBLETS,
    DROPPED,
    ELBO,
    EVIDENCE,
    FLAGGED,
    GAPS,
    GENES,
    LIBRARY_SIZES,
    LIKELIHOODS,
    LOSSES,
    MARKERS,
    MAX_ROWS,
    NONE,
    OUTLIERS,
    PATTERN_EVIDENCE,
    PATTERNS,
    RATE_DISTORTION,
    REFERENCE_GROUPS,
    SAMPLES,
    SPLITS,
    STABILITY,
    TEMPLATE,
    digits,
    dropped_table,
    flagged_table,
    make_table,
    percent,
    whole,
)

STAGES = (
    *("import", "preprocess", "library_size", "likelihood", "train", "rate_distortion", "prune"),
    *("embed", "evidence", "anomaly", "genes", "doublets", "patterns", "check", "stability"),
)
ALL_SAMPLES = "all samples"
# Columns of names in the tables of the reasons.
TEXTS = {
    *("cell_id", "sample", "donor", "pattern", "label", "nearest_reference", "technical_cause"),
    *("genes", "gene", "direction", "null", "top_gene", "group", "named_by", "up", "down"),
}
MAX_CARDS, MAX_MARKERS = 10, 12  # patterns shown with their genes; all are in patterns/
MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
# What each figure shows, in the order of the report; the name is that of its files.
FIGURES = {
    "qc": "Total counts, genes and mitochondrial share of each cell; dropped cells and limits.",
    "library_size": "Library size of each cell, by sample and by role.",
    "training": "ELBO, KL weight, KL of each dimension, and how much of the latent space is used.",
    "rate_distortion": "Rate and distortion of models trained with other weights of the KL term.",
    "pruning": "Evidence for each latent dimension and held-out ELBO before and after the cut.",
    "latent": "UMAP of the latent space by sample, use, p-value and, where known, cell type.",
    "anomalies": "p-values, quantiles, score against depth and flagged share of each sample.",
    "patterns": "Marker genes of each pattern of flagged cells, its samples, its technical causes.",
    "check": "AUROC, power and realised false discovery proportion on injected anomalies.",
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
        content = read_json(path)
        summaries.append({**content, "stage": stage, "sample": sample})
    # The samples of a stage come before the stage as a whole, as they ran.
    return sorted(summaries, key=lambda s: (STAGES.index(s["stage"]), s["sample"] == ""))


def read_sample_table(path: str | Path) -> pd.DataFrame:
    """A table with a column of samples, of which one may be called NA or null."""
    return read_tsv(path, dtype={"sample": str}, keep_default_na=False)


def read_texts(path: str | Path) -> pd.DataFrame:
    """A table in which only numbers can be missing: NA, or nan, in a column of text is a name."""
    header = read_tsv(path, nrows=0).columns
    texts = [name for name in header if name in TEXTS]
    kept = {name: [] if name in texts else ["NA", ""] for name in header}
    return read_tsv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=kept)


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


def losses_table(summaries: list[dict]) -> pd.DataFrame:
    """What was left out between the files and the matrix: cells and genes, not by quality."""
    rows = []
    for summary in summaries:
        if summary["stage"] == "import":
            found = {f"features: {k}": n for k, n in summary.get("dropped_features", {}).items()}
            found["cells without a role"] = summary.get("n_cells_without_role", 0)
            rows += [(summary["sample"], what, n) for what, n in found.items()]
    joined = of_stage(summaries, "preprocess")
    for sample, n in joined.get("n_genes_lost_in_join", {}).items():
        rows.append((sample, "genes that another sample lacks", n))
    rows += [
        (ALL_SAMPLES, "genes in too few cells", joined.get("n_genes_in_too_few_cells", 0)),
        (
            ALL_SAMPLES,
            "cells without a count in the genes left",
            joined.get("n_empty_cells_dropped", 0),
        ),
    ]
    return pd.DataFrame([row for row in rows if row[2]], columns=["sample", "what", "n"])


def describe_selection(preprocess: dict) -> str:
    """How many genes the model sees, and what chose them."""
    by = preprocess.get("selected_by", {})
    counts = {
        f"by variability ({preprocess.get('method', '')})": by.get("variable", 0),
        "by the gene list": by.get("list", 0),
        "by both": by.get("variable, list", 0),
    }
    parts = ", ".join(f"{whole(n)} {how}" for how, n in counts.items() if n)
    return (
        f"{whole(preprocess['n_selected'])} of {whole(preprocess['n_genes'])} genes were selected "
        f"for the model: {parts}."
    )


def judge(anomaly: dict) -> list[dict]:
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
    return [
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


def _judge_depth(cells: str, rho: float, band: float) -> dict:
    return {
        "name": f"Score against depth, {cells}",
        "value": f"ρ = {rho:.2f}",
        "is_sound": abs(rho) <= band,
        "reading": "Spearman correlation of score and library size; near 0, a cell is not odd for "
        f"being deep or shallow (sound within ±{band:.2g}).",
    }


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

    ``tables``: cells, reasons, genes, outliers, patterns, markers, groups, evidence, elbo, gaps,
    channels, splits, samples_library, as the stages write them, and where the run has them
    comparison, curve, pairs and check; ``figures``: paths, named as in ``FIGURES``, others are left
    out.
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
        "checks": judge(anomaly),
        "warnings": collect_warnings(summaries),
        "figures": {
            name: {"source": embed_figure(by_name[name]), "text": caption}
            for name, caption in FIGURES.items()
            if name in by_name
        },
        "samples": make_table(samples_table(summaries, query), SAMPLES),
        "losses": make_table(losses_table(summaries), LOSSES),
        "selection": describe_selection(of_stage(summaries, "preprocess")),
        "dropped": make_table(dropped_table(summaries), DROPPED),
        "splits": make_table(tables["splits"], SPLITS),
        "library_sizes": make_table(tables["samples_library"], LIBRARY_SIZES),
        "evidence": make_table(tables["evidence"], EVIDENCE),
        "n_kept_dimensions": int(tables["evidence"]["kept"].sum()),
        "elbo": make_table(tables["elbo"], ELBO),
        "gaps": make_table(tables["gaps"], GAPS),
        "likelihoods": _optional_table(tables, "comparison", LIKELIHOODS),
        "rate_distortion": _optional_table(tables, "curve", RATE_DISTORTION),
        "stability_pairs": _optional_table(tables, "pairs", STABILITY),
        "flagged": make_table(flagged_table(query, tables["reasons"]), FLAGGED),
        "gene_hits": make_table(surest(tables["genes"], "log10_p"), GENES),
        "outliers": make_table(most(tables["outliers"], "n_outlier_genes"), OUTLIERS),
        "patterns": make_table(tables["patterns"], PATTERNS),
        "pattern_evidence": make_table(tables["patterns"], PATTERN_EVIDENCE),
        "markers": pattern_cards(tables["patterns"], tables["markers"]),
        "groups": make_table(tables["groups"], REFERENCE_GROUPS),
        "doublet_reliability": make_table(
            pd.DataFrame(
                of_stage(summaries, "doublets").get("reliability", []),
                columns=[column.name for column in DOUBLETS],
            ),
            DOUBLETS,
        ),
        "check": _optional_table(tables, "check", CHECK),
        "channels": make_table(tables["channels"], CHANNELS),
        "depth_fifths": [percent(rate) for rate in rates],
        "preprocess": of_stage(summaries, "preprocess"),
        "library_size": of_stage(summaries, "library_size"),
        "train": of_stage(summaries, "train"),
        "prune": of_stage(summaries, "prune"),
        "evidence_summary": of_stage(summaries, "evidence"),
        "likelihood": of_stage(summaries, "likelihood"),
        "stability": of_stage(summaries, "stability"),
        "anomaly": anomaly,
        "unit": of_stage(summaries, "genes")["observations"],
        "gene_summary": of_stage(summaries, "genes"),
        "doublets": of_stage(summaries, "doublets"),
        "reasons": of_stage(summaries, "patterns"),
        "check_summary": of_stage(summaries, "check"),
    }


def surest(hits: pd.DataFrame, by: str) -> pd.DataFrame:
    """The hits with the smallest p-values, at most ``MAX_ROWS``."""
    return hits.sort_values([by, "cell_id", "gene"], kind="stable").head(MAX_ROWS)


def most(cells: pd.DataFrame, by: str) -> pd.DataFrame:
    """The cells or samples with the most outlier genes, at most ``MAX_ROWS``."""
    some = cells[cells[by] > 0]
    return some.sort_values([by, "cell_id"], ascending=[False, True]).head(MAX_ROWS)


def pattern_cards(patterns: pd.DataFrame, markers: pd.DataFrame) -> list[dict]:
    """The largest patterns, each with the table of its surest marker genes."""
    cards = []
    for row in patterns.head(MAX_CARDS).itertuples():
        found = markers[markers["pattern"] == row.pattern].sort_values(["q_value", "gene"])
        table = make_table(found.head(MAX_MARKERS), MARKERS)
        cards.append({"pattern": row.pattern, "label": row.label, "markers": table})
    return cards


def _optional_table(tables: dict[str, pd.DataFrame], name: str, columns) -> dict | None:
    """A table that only some runs make."""
    return make_table(tables[name], columns) if name in tables else None


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
        tables = {name: pd.read_parquet(files[name]) for name in ("cells", "evidence")}
        tables |= {name: read_sample_table(files[name]) for name in ("splits", "samples_library")}
        tables |= {name: read_tsv(files[name]) for name in ("elbo", "channels")}
        # A group may be called NA or 7; a group of one cell has no standard error.
        tables["gaps"] = read_tsv(
            files.gaps,
            dtype={"group": str},
            keep_default_na=False,
            na_values={"gap_se": ["NA"]},
        )
        # A gene, a sample or a label may be called NA too; there it is no missing number.
        for name in ("reasons", "genes", "outliers", "patterns", "markers", "groups"):
            tables[name] = read_texts(files[name])
        for name in ("comparison", "curve", "pairs", "check"):
            if files[name]:
                tables[name] = read_tsv(files[name][0])
        summaries = read_summaries(files.summaries)
        versions = package_versions(snakemake.params.versions)
        content = report_content(tables, summaries, files.figures)
        content |= {"run": config["run"], "settings": flatten(config), "versions": versions}
        _write_text(render(TEMPLATE.read_text(encoding="utf-8"), content), snakemake.output.report)
        _write_text(write_methods(config, summaries), snakemake.output.methods)
        log.info("%d of %d query cells flagged", content["n_flagged"], content["n_query"])
