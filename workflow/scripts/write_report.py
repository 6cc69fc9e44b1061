"""Write what the run found: a page to read, methods for the paper."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

import finding_columns as of_finding
import stage_columns as of_stages
from job import job, read_json, read_tsv, write_atomically
from methods import methods_paragraphs, write_methods
from provenance import package_versions
from references import cited_in
from report_findings import (
    collect_warnings,
    first_warnings,
    how_sure,
    judge,
    what_was_found,
)
from report_map import make_map
from report_page import embed_figure, render
from report_tables import (
    MAX_HITS,
    MAX_ROWS,
    NONE,
    digits,
    dropped_table,
    flagged_table,
    losses_table,
    make_long_table,
    make_table,
    most,
    of_stage,
    percent,
    samples_table,
    surest,
    whole,
)

STAGES = (
    *("import", "preprocess", "library_size", "likelihood", "train", "rate_distortion", "prune"),
    *("embed", "evidence", "correlation", "anomaly", "genes", "doublets", "patterns", "check"),
    "stability",
)
# Columns of names in the tables of the reasons.
TEXTS = {
    *("cell_id", "sample", "donor", "pattern", "label", "nearest_reference", "technical_cause"),
    *("genes", "gene", "direction", "null", "top_gene", "group", "named_by", "up", "down"),
}
MAX_CARDS, MAX_MARKERS = 10, 12  # patterns shown with their genes; all are in patterns/
# What each figure shows; the name is that of its files.
FIGURES = {
    "qc": "Total counts, genes and mitochondrial share of each cell; dropped cells and limits.",
    "library_size": "Library size of each cell, by sample and by role.",
    "training": "ELBO, KL weight, KL of each dimension, and how much of the latent space is used.",
    "rate_distortion": "Rate and distortion of models trained with other weights of the KL term.",
    "pruning": "Evidence for each latent dimension and held-out ELBO before and after the cut.",
    "latent": "UMAP of the latent space by sample, use, p-value and, where known, cell type.",
    "anomalies": "p-values, quantiles, score against depth and flagged share of each sample.",
    "patterns": "Flagged cells in the markers of each pattern, its samples, its technical causes.",
    "genes": "Outlier genes: fold changes, observed against expected counts, how many there are.",
    "correlation": "Correlation of bulk samples before and after the model's expectation.",
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
    """All that the template prints, but the map and the methods.

    ``tables``: cells, reasons, genes, outliers, patterns, markers, groups, evidence, elbo, gaps,
    channels, splits, samples_library, as the stages write them, and where the run has them
    comparison, curve, pairs and check; ``figures``: paths, named as in ``FIGURES``, others are left
    out.
    """
    stages = {name: of_stage(summaries, name) for name in STAGES}
    unit = stages["genes"]["observations"]
    return {
        "unit": unit,
        "one": unit.removesuffix("s"),
        "of_table": "group" if unit == "samples" else "sample",
        **_first_screen(tables, summaries, stages),
        **_tables(tables, summaries, stages, unit),
        "figures": {
            path.stem: embed_figure(path, FIGURES[path.stem])
            for path in map(Path, figures)
            if path.stem in FIGURES
        },
        "selection": describe_selection(stages["preprocess"]),
        "max_rows": MAX_ROWS,
        "max_hits": MAX_HITS,
        "n_kept_dimensions": int(tables["evidence"]["kept"].sum()),
        "depth_fifths": [percent(rate) for rate in stages["anomaly"]["fpr_by_depth_fifth"]],
        "preprocess": stages["preprocess"],
        "library_size": stages["library_size"],
        "train": stages["train"],
        "prune": stages["prune"],
        "evidence_summary": stages["evidence"],
        "likelihood": stages["likelihood"],
        "stability": stages["stability"],
        "anomaly": stages["anomaly"],
        "gene_summary": stages["genes"],
        "doublets": stages["doublets"],
        "reasons": stages["patterns"],
        "check_summary": stages["check"],
    }


def _first_screen(
    tables: dict[str, pd.DataFrame], summaries: list[dict], stages: dict[str, dict]
) -> dict:
    """The finding, how sure it is, what to worry about."""
    cells, anomaly = tables["cells"], stages["anomaly"]
    query = cells[cells["split"] == "query"]
    unit = stages["genes"]["observations"]
    n_flagged, checks = int(query["is_anomaly"].sum()), judge(anomaly, unit)
    warnings = collect_warnings(summaries)
    samples = samples_table(summaries, query)
    return {
        "n_query": len(query),
        "n_flagged": n_flagged,
        "smallest_q": digits(query["q_value"].min()) if len(query) else NONE,
        "alpha": percent(anomaly["alpha"]),
        "n_false": digits(anomaly["alpha"] * n_flagged),
        "found": what_was_found(tables["patterns"], samples, stages["patterns"], stages["genes"]),
        "sureness": how_sure(anomaly, checks, stages["check"], unit),
        "checks": checks,
        "warnings": warnings,
        "first_warnings": first_warnings(warnings),
    }


def _tables(
    tables: dict[str, pd.DataFrame], summaries: list[dict], stages: dict[str, dict], unit: str
) -> dict:
    """The tables of all sections; None where the run has none."""
    cells = tables["cells"]
    query = cells[cells["split"] == "query"]
    reliability = pd.DataFrame(
        stages["doublets"].get("reliability", []),
        columns=[column.name for column in of_finding.DOUBLETS],
    )
    long = {
        "flagged": (flagged_table(query, tables["reasons"]), of_finding.FLAGGED),
        "gene_hits": (surest(tables["genes"], "log10_p"), of_finding.GENES),
        "outliers": (most(tables["outliers"], "n_outlier_genes"), of_finding.OUTLIERS),
    }
    short = {
        "samples": (samples_table(summaries, query), of_finding.SAMPLES),
        "patterns": (tables["patterns"], of_finding.PATTERNS),
        "pattern_evidence": (tables["patterns"], of_finding.PATTERN_EVIDENCE),
        "groups": (tables["groups"], of_finding.REFERENCE_GROUPS),
        "doublet_reliability": (reliability, of_finding.DOUBLETS),
        "check": (tables.get("check"), of_finding.CHECK),
        "channels": (tables["channels"], of_finding.CHANNELS),
        "losses": (losses_table(summaries), of_stages.LOSSES),
        "splits": (tables["splits"], of_stages.SPLITS),
        "dropped": (dropped_table(summaries), of_stages.DROPPED),
        "library_sizes": (tables["samples_library"], of_stages.LIBRARY_SIZES),
        "likelihoods": (tables.get("comparison"), of_stages.LIKELIHOODS),
        "rate_distortion": (tables.get("curve"), of_stages.RATE_DISTORTION),
        "evidence": (tables["evidence"], of_stages.EVIDENCE),
        "elbo": (tables["elbo"], of_stages.ELBO),
        "gaps": (tables["gaps"], of_stages.GAPS),
        "stability_pairs": (tables.get("pairs"), of_stages.STABILITY),
    }
    made = {name: make_long_table(*content, unit) for name, content in long.items()}
    for name, (rows, columns) in short.items():
        made[name] = None if rows is None else make_table(rows, columns, unit)
    return made | {"markers": pattern_cards(tables["patterns"], tables["markers"], unit)}


def pattern_cards(patterns: pd.DataFrame, markers: pd.DataFrame, unit: str = "cells") -> list[dict]:
    """The largest patterns, each with the table of its surest marker genes."""
    cards = []
    for row in patterns.head(MAX_CARDS).itertuples():
        found = markers[markers["pattern"] == row.pattern].sort_values(["q_value", "gene"])
        table = make_table(found.head(MAX_MARKERS), of_finding.MARKERS, unit)
        cards.append({"pattern": row.pattern, "label": row.label, "markers": table})
    return cards


def methods_content(config: dict, summaries: list[dict], bibtex: str) -> dict:
    """The methods as the page shows them, with their references."""
    paragraphs = methods_paragraphs(config, summaries)
    references = cited_in("\n\n".join(paragraphs))
    return {"methods": paragraphs, "references": references, "bibtex": bibtex}


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
        methods, bibtex = write_methods(config, summaries)
        content = report_content(tables, summaries, files.figures)
        content |= {"run": config["run"], "settings": flatten(config), "versions": versions}
        content |= methods_content(config, summaries, bibtex)
        content["map"] = make_map(files, tables, content["unit"])
        for text, path in ((render(content), "report"), (methods, "methods"), (bibtex, "bibtex")):
            _write_text(text, snakemake.output[path])
        log.info("%d of %d query cells flagged", content["n_flagged"], content["n_query"])
