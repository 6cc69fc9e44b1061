"""The report of an invented run: as text, and as the rule writes it.

make_report(run)                 # run: as write_fake_run fills it
write_files(run, folder, config)
"""

from pathlib import Path

import pandas as pd
from markdown_it import MarkdownIt
from PIL import Image

from fake_run import CONFIG
from methods import write_methods
from report_map import make_map
from report_page import render
from run_script import run_script
from write_report import flatten, methods_content, read_summaries, read_texts, report_content

FIGURES = ("qc", "library_size", "training", "pruning", "latent", "anomalies", "patterns")
TABLES = {
    "cells": "anomaly/cells.parquet",
    "evidence": "prune/seed1/evidence.parquet",
    "elbo": "prune/seed1/elbo.tsv",
    "gaps": "evidence/groups.tsv",
    "channels": "anomaly/channels.tsv",
    "splits": "preprocess/splits.tsv",
    "samples_library": "library_size/samples.tsv",
    "reasons": "anomaly/cells.tsv",
    "genes": "genes/genes.tsv",
    "outliers": "genes/outliers.tsv",
    "patterns": "patterns/patterns.tsv",
    "markers": "patterns/markers.tsv",
    "groups": "patterns/groups.tsv",
}
OPTIONAL = {
    "comparison": "likelihood/comparison.tsv",
    "curve": "rate_distortion/curve.tsv",
    "pairs": "stability/pairs.tsv",
    "check": "check/check.tsv",
}
MAP = {
    "counts": "preprocess/counts.h5ad",
    "umap": "embed/seed1/umap.parquet",
    "library_size": "library_size/library_size.parquet",
}
OF_NAMES = ("reasons", "genes", "outliers", "patterns", "markers", "groups")


def read_table(name: str, path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return read_texts(path) if name in OF_NAMES else pd.read_csv(path, sep="\t")


def read_tables(run: Path) -> dict[str, pd.DataFrame]:
    paths = TABLES | {name: path for name, path in OPTIONAL.items() if (run / path).exists()}
    return {name: read_table(name, run / path) for name, path in paths.items()}


def draw_figures(run: Path) -> list[Path]:
    """Files in the place of the figures: four white pixels and a text each."""
    names = [*FIGURES, *(name for name in ("rate_distortion", "check") if (run / name).exists())]
    (run / "figures").mkdir(exist_ok=True)
    paths = [run / "figures" / f"{name}.png" for name in names]
    for path in paths:
        Image.new("RGBA", (4, 2), "white").save(path)
        path.with_suffix(".txt").write_text(f"What {path.stem} shows, in words.\n")
    return paths


def make_report(run: Path, config: dict = CONFIG) -> str:
    tables, summaries = read_tables(run), read_summaries(run.rglob("*summary.json"))
    content = report_content(tables, summaries, draw_figures(run))
    content |= {"run": config["run"], "settings": flatten(config), "versions": {"numpy": "2"}}
    content |= methods_content(config, summaries, write_methods(config, summaries)[1])
    paths = {name: str(run / path) for name, path in MAP.items()}
    return render(content | {"map": make_map(paths, tables, content["unit"])})


def write_files(run: Path, folder: Path, config: dict) -> dict:
    """The rule write_report on the files of a run."""
    folder.mkdir(exist_ok=True)
    inputs = {name: str(run / path) for name, path in (TABLES | MAP).items()}
    for name, path in OPTIONAL.items():
        inputs[name] = [str(run / path)] if (run / path).exists() else []
    inputs |= {
        "figures": [str(path) for path in draw_figures(run)],
        "summaries": [str(path) for path in sorted(run.rglob("*summary.json"))],
    }
    output = {"report": "report.html", "methods": "methods.md", "bibtex": "references.bib"}
    params = {"config": config, "versions": ["numpy"]}
    return run_script("write_report", folder, inputs, output, params)


def as_shown(markdown: str) -> str:
    """The text that a reader of Markdown sees, which must have headings, lists and words alone."""
    blocks = MarkdownIt("commonmark").enable(["strikethrough", "table"]).parse(markdown)
    kinds = {block.type.removesuffix("_open").removesuffix("_close") for block in blocks}
    assert kinds <= {"heading", "paragraph", "inline", "bullet_list", "list_item"}, kinds
    words = [word for block in blocks for word in block.children or []]
    assert {word.type for word in words} <= {"text", "softbreak"}
    return "".join(word.content for word in words)
