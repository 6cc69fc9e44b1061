"""Seconds and memory of every rule as the number of cells grows.

::

    python scale.py --out FOLDER [--cells 10000 100000 1000000] [--like COUNTS.h5ad] [--memory auto]

Simulates a reference and a query of as many cells in all, runs the whole pipeline on them with one
core and default settings, and reads what each rule took. Cells are simulated as in ``compare.py``;
with ``--like``, drawn from a real file and each count thinned (semi-synthetic). Written:
``scale.tsv``, a row a rule and size, and ``scale.png``. Sizes that are there already are not run
again.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import seaborn as sns
from compare import N_GENES, simulated_blocks

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from stored_counts import write_h5ad  # noqa: E402

QUERY_SHARE = 0.25
BLOCK = 5000  # cells
KEPT = 0.8  # of each count of a real cell
PEAK = re.compile(r"peak memory (\d+) MB")


def thinned_blocks(real: ad.AnnData, n_cells: int, seed: int) -> Iterator[sp.csr_matrix]:
    """Cells drawn from real ones, a share KEPT of their counts."""
    rng = np.random.default_rng(seed)
    counts = sp.csr_matrix(real.X).astype(np.int32)
    for start in range(0, n_cells, BLOCK):
        block = counts[rng.integers(0, counts.shape[0], min(BLOCK, n_cells - start))]
        block.data = rng.binomial(block.data, KEPT).astype(np.int32)
        block.eliminate_zeros()
        yield block


def write_inputs(folder: Path, n_cells: int, real: ad.AnnData | None, memory: str) -> None:
    """Two samples, the sample table and the config."""
    folder.mkdir(parents=True)
    genes = [f"G{j}" for j in range(N_GENES)] if real is None else real.var_names.astype(str)
    of_role = {"query": round(QUERY_SHARE * n_cells)}
    of_role["reference"] = n_cells - of_role["query"]
    rows = []
    for seed, (role, n) in enumerate(sorted(of_role.items())):
        blocks = simulated_blocks(n, seed) if real is None else thinned_blocks(real, n, seed)
        names = pd.Index([f"{role[0]}{i}" for i in range(n)])
        tables = {"obs": pd.DataFrame(index=names), "var": pd.DataFrame(index=pd.Index(genes))}
        write_h5ad(folder / f"{role}.h5ad", {"X": blocks}, tables)
        rows.append({"sample": role, "path": f"{role}.h5ad", "role": role})
    pd.DataFrame(rows).to_csv(folder / "samples.tsv", sep="\t", index=False)
    config = {"run": "scale", "samples": "samples.tsv"}
    config["memory"] = memory if memory == "auto" else float(memory)
    (folder / "config.json").write_text(json.dumps(config))


def run(folder: Path) -> None:
    """The whole pipeline on one core."""
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(folder / "config.json"), "--cores", "1", "--quiet", "all"]
    command += ["--workflow-profile", str(ROOT / "profiles" / "default")]
    subprocess.run(command, check=True)


def measured(folder: Path, n_cells: int) -> list[dict]:
    """A row a job: its seconds, and the peak memory that it logged."""
    results, rows = folder / "results" / "scale", []
    for path in sorted(results.glob("benchmarks/**/*.jsonl")):
        name = path.relative_to(results / "benchmarks").with_suffix("")
        log = (results / "logs" / name).with_suffix(".log").read_text()
        seconds = json.loads(path.read_text())["s"]
        peak = float(PEAK.search(log)[1])
        rows.append({"cells": n_cells, "job": str(name), "seconds": seconds, "peak_mb": peak})
    return rows


def draw(table: pd.DataFrame, path: Path) -> None:
    """Seconds a million cells, and peak memory, of each rule against the number of cells."""
    by_rule = table.assign(rule=table["job"].str.split("/").str[0])
    by_rule["us_a_cell"] = 1e6 * by_rule["seconds"] / by_rule["cells"]
    kept = by_rule.groupby("rule")["seconds"].max().nlargest(14).index
    shown = by_rule[by_rule["rule"].isin(kept)].groupby(["rule", "cells"], as_index=False).max()
    what = {"us_a_cell": "µs a cell", "peak_mb": "peak memory (MB)"}
    long = shown.melt(["rule", "cells"], what, "measure", "value").replace({"measure": what})
    grid = sns.relplot(
        long, x="cells", y="value", hue="rule", col="measure", kind="line", marker="o",
        palette="husl", facet_kws={"sharey": False}, height=4,
    )  # fmt: skip
    grid.set(xscale="log", yscale="log").set_titles("{col_name}").set_ylabels("")
    grid.figure.savefig(path, dpi=150)


def main() -> None:
    """Simulate, run, read, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--like", type=Path, help=".h5ad of real counts")
    parser.add_argument("--memory", default="auto", help="as in config.yaml")
    options = parser.parse_args()
    real = ad.read_h5ad(options.like) if options.like else None
    rows = []
    for n_cells in options.cells:
        folder = options.out.resolve() / str(n_cells)
        if not folder.exists():
            write_inputs(folder, n_cells, real, options.memory)
        run(folder)
        rows += measured(folder, n_cells)
        table = pd.DataFrame(rows)
        table.to_csv(options.out / "scale.tsv", sep="\t", index=False, float_format="%.4g")
        draw(table, options.out / "scale.png")
    wide = table.pivot(index="job", columns="cells", values=["seconds", "peak_mb"]).round(1)
    print(wide.to_string())


if __name__ == "__main__":
    main()
