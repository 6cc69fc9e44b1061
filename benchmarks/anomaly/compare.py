"""Run the pipeline and its peers on the same splits, judge all alike, write tables and the figure.

::

    python benchmarks/anomaly/compare.py --data FOLDER --out FOLDER [--sets ...] [--splits 1 2 3]

README.md says what is in the tables and how to read them.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import judge
import numpy as np
import pandas as pd
import yaml
from cases import CASES, GROUPS_OF_SETS, THINNED_NAME, Case, chosen
from draw import draw
from peers import FAMILIES, Cells, family_scores, missing_packages, read_cells

ROOT = Path(__file__).resolve().parents[2]
RUN = "compare"
# Sets differ in depth and damage on purpose, and damaged cells are to be found, not filtered.
NO_FILTER = {"min_counts": 1, "min_genes": 1, "max_pct_mito": None, "n_mads": None}


def run_pipeline(case: Case, split: int, data: Path, folder: Path, cores: int) -> Path:
    """The pipeline with its default config, up to the verdict on the cells; its results' folder.

    Snakemake reruns what a change of the pipeline asks for, and nothing else.
    """
    if not (folder / "config.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        case.cells(data, split).write_h5ad(folder / "cells.h5ad")
        table = pd.DataFrame([["S", folder / "cells.h5ad", "obs:role"]])
        header = ["sample", "path", "role"]
        table.to_csv(folder / "samples.tsv", sep="\t", index=False, header=header)
        config = {"run": RUN, "samples": str(folder / "samples.tsv"), "seed": split}
        config["preprocess"] = {"filter_cells": NO_FILTER}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--profile", ROOT / "profiles" / "default", "--directory", folder]
    command += ["--configfile", folder / "config.yaml", "--cores", str(cores), "--quiet", "all"]
    command += ["--", f"results/{RUN}/anomaly/cells.parquet"]
    with (folder / "snakemake.log").open("w") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"{case.name}, split {split}: the pipeline failed; see {log.name}")
    return folder / "results" / RUN


def peer_scores(cells: Cells, counts: Path, folder: Path) -> dict[str, np.ndarray]:
    """Every installed peer's score of all cells (cells,), kept in ``folder`` for the next time.

    Computed again where the cells or the peers' code are newer.
    """
    folder.mkdir(exist_ok=True)
    scores = {}
    for family in [name for name in FAMILIES if not missing_packages(name)]:
        path = folder / f"{family}.parquet"
        sources = [counts, Path(__file__).with_name("peers.py")]
        if not path.exists() or path.stat().st_mtime < max(s.stat().st_mtime for s in sources):
            part = path.with_suffix(".part")
            pd.DataFrame(family_scores(family, cells), index=cells.ids).to_parquet(part)
            os.replace(part, path)
        scores |= {name: s.to_numpy() for name, s in pd.read_parquet(path).items()}
    return scores


def verdicts(cells: Cells, scores: dict[str, np.ndarray], ours: Path) -> dict[str, tuple]:
    """score, p-value and flag of the query cells by each method; (cells,) each.

    The peers' are calibrated here. The oracle has no score for calibration cells and flags none.
    """
    query, calibration = cells.split == "query", cells.split == "calibration"
    table = pd.read_parquet(ours).set_index("cell_id").loc[cells.ids[query]]
    found = {judge.OURS: [table[c].to_numpy() for c in ("score", "p_value", "is_anomaly")]}
    for method, score in scores.items():
        if method == judge.ORACLE:
            p = np.ones(query.sum())
        else:
            p = judge.conformal_p(score[query], score[calibration])
        found[method] = score[query], p, judge.flag(p)
    return found


def judge_case(case: Case, split: int, cells: Cells, found: dict[str, tuple]) -> list[dict]:
    """One row a method: power where something is hidden, validity where nothing is."""
    query = cells.split == "query"
    hidden, depth = cells.is_hidden[query], cells.total[query]
    n_calibration = int((cells.split == "calibration").sum())
    rows = []
    for method, (score, p, flagged) in found.items():
        row = {"group": case.group, "set": case.name, "split": split, "method": method}
        if not hidden.any():
            row |= judge.validity(p, score, flagged, depth, n_calibration)
        else:
            row |= judge.power(hidden, score, flagged)
            if method == judge.ORACLE:
                row |= dict.fromkeys(["recall", "fdp", "n_flagged"], np.nan)
        rows.append(row)
    return rows


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown; numbers with three decimals."""
    shown = table.map(lambda v: f"{v:.3f}" if isinstance(v, float) else str(v)).replace("nan", "")
    rows = [table.columns, ["---"] * len(table.columns), *shown.to_numpy()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def summaries(table: pd.DataFrame, normal: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What table.md shows, by the name of its file; only of groups that were run."""
    groups = {name: rows for name, rows in table.groupby("group")} if len(table) else {}
    found = {}
    for name in [group for group in GROUPS_OF_SETS if group in groups]:
        found[f"{name}_sets"] = judge.by_set(groups[name])
        found[f"{name}_methods"] = judge.by_method(groups[name])
    if {"public", "thinned"} <= set(groups):
        loss = judge.thinning_loss(groups["public"], groups["thinned"], THINNED_NAME)
        found["thinning_loss"] = loss
    if len(normal):
        found["error_rates"] = judge.error_rates(normal)
    return found


def write(out: Path, table: pd.DataFrame, normal: pd.DataFrame, skipped: list[str]) -> None:
    """table.tsv, normal.tsv, a TSV a summary, all summaries in table.md, and plot.svg and .png."""
    table = judge.ranked(table) if len(table) else table
    shown = summaries(table, normal)
    for name, rows in {"table": table, "normal": normal, **shown}.items():
        if len(rows):
            rows.to_csv(out / f"{name}.tsv", sep="\t", index=False, float_format="%.4g")
    text = [f"## {name.replace('_', ' ')}\n\n{markdown(rows)}" for name, rows in shown.items()]
    (out / "table.md").write_text("\n".join([*(f"{line}\n" for line in skipped), *text]))
    if len(table):
        draw(table, out / "plot")


def main() -> None:
    """Run what has not been run, judge all, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the .h5ad files")
    parser.add_argument("--out", type=Path, required=True, help="where runs and tables go")
    names = [*GROUPS_OF_SETS, *CASES]
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=names,
        default=list(GROUPS_OF_SETS),
        metavar="SET",
        help=f"a group ({', '.join(GROUPS_OF_SETS)}) or {', '.join(CASES)}; default: all",
    )
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 3], help="seeds")
    parser.add_argument(
        "--normal-splits",
        type=int,
        nargs="+",
        default=list(range(1, 21)),
        help="seeds of the sets with nothing hidden; default: 1 to 20",
    )
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    out = options.out.resolve()
    lacking = {name: missing_packages(name) for name in FAMILIES}
    skipped = [
        f"Skipped: {name}, which needs {', '.join(packages)} (benchmarks/anomaly/requirements.txt)."
        for name, packages in lacking.items()
        if packages
    ]
    print("\n".join(skipped), end="\n" if skipped else "")
    rows = {True: [], False: []}  # something is hidden: yes, no
    for case in chosen(options.sets):
        for split in options.normal_splits if case.group == "normal" else options.splits:
            folder = out / f"{case.name}_split{split}"
            results = run_pipeline(case, split, options.data.resolve(), folder, options.cores)
            counts = results / "preprocess" / "counts.h5ad"
            cells = read_cells(counts)
            scores = peer_scores(cells, counts, folder / "peers")
            found = verdicts(cells, scores, results / "anomaly" / "cells.parquet")
            rows[case.group != "normal"] += judge_case(case, split, cells, found)
            print(f"{case.name}, split {split}: done", flush=True)
    write(out, pd.DataFrame(rows[True]), pd.DataFrame(rows[False]), skipped)
    print((out / "table.md").read_text())


if __name__ == "__main__":
    main()
