"""Doublets, real and simulated, and novel types beside them: this pipeline, Scrublet, total count.

Run it as README.md says. Half of the single cells of a set are the reference; the query holds the
other half, the doublets, and in some cases every cell of a type that the reference lacks. A peer
has no reference, so it is given all cells at once. Labels only judge, never train.
"""

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import yaml
from sklearn.metrics import average_precision_score, roc_auc_score

ROOT = Path(__file__).resolve().parents[2]
RATE = 0.06  # the pipeline's default and Scrublet's expected rate
LIKELY = 0.5
N_SIMULATED = 100
KEEP_ALL = dict(min_counts=1, min_genes=1, max_pct_mito=None, n_mads=None)


@dataclass(frozen=True)
class Case:
    """A set of cells, which of them are doublets (none: they are simulated), which are left out."""

    file: str
    doublet: Callable[[pd.DataFrame], np.ndarray] | None
    left_out: Callable[[pd.DataFrame], np.ndarray]
    label: str
    novel: str = ""


def _nobody(obs: pd.DataFrame) -> np.ndarray:
    return np.zeros(len(obs), dtype=bool)


def _failed_qc(obs: pd.DataFrame) -> np.ndarray:
    return (obs["cell_type"] == "Unassigned").to_numpy()


def _sorted_doublet(obs: pd.DataFrame) -> np.ndarray:
    return obs["is_sorted_doublet"].to_numpy(dtype=bool)


def _hashed_doublet(obs: pd.DataFrame) -> np.ndarray:
    return (obs["hash_class"] == "Doublet").to_numpy()


def _hash_negative(obs: pd.DataFrame) -> np.ndarray:
    return (obs["hash_class"] == "Negative").to_numpy()


def _stimulated(obs: pd.DataFrame) -> np.ndarray:
    return (obs["condition"] == "stim").to_numpy()


CASES = {
    "sorted": Case("mix_cell_lines_5batches", _sorted_doublet, _nobody, "cell_line"),
    "hashed": Case("cell_hashing_4lines_doublets", _hashed_doublet, _hash_negative, "cell_line"),
    "pbmc3k": Case("pbmc3k", None, _failed_qc, "cell_type"),
    "pbmc3k_B": Case("pbmc3k", None, _failed_qc, "cell_type", "B"),
    "pbmc3k_NK": Case("pbmc3k", None, _failed_qc, "cell_type", "NK"),
    "kang": Case("kang_ifnb_2000", None, _stimulated, "cell_type"),
}


def simulate(cells: ad.AnnData, n: int, rng: np.random.Generator) -> ad.AnnData:
    """Sums of two different cells, thinned to the total count of a cell drawn at random."""
    first = rng.integers(0, len(cells), n)
    second = (first + 1 + rng.integers(0, len(cells) - 1, n)) % len(cells)
    counts = sp.csr_matrix(cells.X)
    made = (counts[first] + counts[second]).tocsr()
    target = np.asarray(counts.sum(1)).ravel()[rng.integers(0, len(cells), n)]
    share = np.minimum(target / np.asarray(made.sum(1)).ravel(), 1.0)
    rows = np.repeat(np.arange(n), np.diff(made.indptr))
    made.data = rng.binomial(made.data.astype(np.int64), share[rows]).astype(np.int32)
    made.eliminate_zeros()
    obs = pd.DataFrame(index=[f"simulated{i}" for i in range(n)])
    labels = cells.obs["label"].astype(str).to_numpy()
    obs["heterotypic"] = labels[first] != labels[second]
    return ad.AnnData(made, obs=obs, var=cells.var)


def prepare(case: Case, data: Path, seed: int) -> ad.AnnData:
    """Counts of all cells; obs: role, kind (singlet, doublet, novel), heterotypic of a doublet."""
    rng = np.random.default_rng(seed)
    cells = ad.read_h5ad(data / f"{case.file}.h5ad")
    cells = cells[~case.left_out(cells.obs)].copy()
    cells.X = sp.csr_matrix(cells.X).astype(np.int32)
    obs = pd.DataFrame({"label": cells.obs[case.label].astype(str)})
    obs["kind"] = "singlet"
    obs["heterotypic"] = True
    if case.doublet:
        obs.loc[case.doublet(cells.obs), "kind"] = "doublet"
    obs.loc[obs["label"] == case.novel, "kind"] = "novel"
    singlets = rng.permutation(np.flatnonzero(obs["kind"] == "singlet"))
    obs["role"] = "query"
    obs.iloc[singlets[: len(singlets) // 2], obs.columns.get_loc("role")] = "reference"
    cells = ad.AnnData(cells.X, obs=obs, var=pd.DataFrame(index=cells.var_names))
    if case.doublet is None:
        made = simulate(cells[singlets[len(singlets) // 2 :]], N_SIMULATED, rng)
        made.obs = made.obs.assign(label="", kind="doublet", role="query")
        cells = ad.concat([cells, made])
    return cells


def run_pipeline(cells: ad.AnnData, folder: Path, python: str, seed: int, cores: int) -> None:
    """The pipeline with its default model, up to doublets/cells.parquet; every cell is kept."""
    source = ad.AnnData(cells.X, obs=cells.obs[["role"]], var=cells.var)
    source.write_h5ad(folder / "source.h5ad")
    table = pd.DataFrame([["S", folder / "source.h5ad", "obs:role"]])
    table.to_csv(folder / "samples.tsv", sep="\t", index=False, header=["sample", "path", "role"])
    config = {"run": "doublets", "samples": str(folder / "samples.tsv"), "seed": seed}
    config |= {"preprocess": {"filter_cells": KEEP_ALL}, "doublets": {"rate": RATE}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [python, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--profile", ROOT / "profiles" / "default", "--directory", folder]
    command += ["--configfile", folder / "config.yaml", "--cores", str(cores), "--quiet", "all"]
    subprocess.run([*command, "--", "results/doublets/doublets/cells.parquet"], check=True)


def scrublet(cells: ad.AnnData, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Score of each cell, and whether its automatic threshold calls it a doublet."""
    import scanpy as sc  # a peer's package; the judge does without

    found = ad.AnnData(cells.X.astype(np.float32), obs=cells.obs[[]], var=cells.var)
    # Exact neighbours: the approximate ones fail with newer scipy in large sets.
    sc.pp.scrublet(
        found,
        expected_doublet_rate=RATE,
        use_approx_neighbors=False,
        random_state=seed,
        verbose=False,
    )
    score = found.obs["doublet_score"].to_numpy()
    return score, found.obs["predicted_doublet"].to_numpy(dtype=bool)


def solo(cells: ad.AnnData, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Doublet probability of each cell by SOLO of scvi-tools, and whether it is above one half."""
    import scanpy as sc
    import scvi

    scvi.settings.seed = seed
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    found = ad.AnnData(cells.X.astype(np.float32), obs=cells.obs[[]], var=cells.var)
    sc.pp.filter_genes(found, min_cells=5)
    sc.pp.highly_variable_genes(found, n_top_genes=2000, flavor="seurat_v3", subset=True)
    scvi.model.SCVI.setup_anndata(found)
    model = scvi.model.SCVI(found)
    model.train(max_epochs=100, **quiet)
    classifier = scvi.external.SOLO.from_scvi_model(model)
    classifier.train(max_epochs=100, **quiet)
    probability = classifier.predict(soft=True).loc[found.obs_names, "doublet"].to_numpy()
    return probability, probability > LIKELY


def judge(obs: pd.DataFrame, score: np.ndarray, called: np.ndarray) -> dict:
    """Ranking of doublets above the query's single cells, and the share called of each kind."""
    kind, is_heterotypic = obs["kind"].to_numpy(), obs["heterotypic"].to_numpy(dtype=bool)
    single, double = kind == "singlet", kind == "doublet"
    row = {}
    for name, positive in (("", double), ("_heterotypic", double & is_heterotypic)):
        taken = single | positive
        row[f"auroc{name}"] = roc_auc_score(positive[taken], score[taken])
        row[f"auprc{name}"] = average_precision_score(positive[taken], score[taken])
    for name in ("doublet", "singlet", "novel"):
        chosen = kind == name
        row[f"called_{name}"] = called[chosen].mean() if chosen.any() else np.nan
    return row | {"n_doublets": int(double.sum()), "n_singlets": int(single.sum())}


def rows_of_case(name: str, seed: int, options: argparse.Namespace) -> list[dict]:
    """A row a method; the pipeline's results are kept in a folder of their own."""
    folder = options.out.resolve() / f"{name}_seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    cells = prepare(CASES[name], options.data, seed)
    result = folder / "results" / "doublets" / "doublets" / "cells.parquet"
    if not result.exists():
        run_pipeline(cells, folder, options.python, seed, options.cores)
    ours = pd.read_parquet(result).set_index("cell_id")
    is_query = (cells.obs["role"] == "query").to_numpy()
    query = cells.obs[is_query]
    probability = ours.loc[query.index, "doublet_probability"].to_numpy()
    total = np.asarray(cells.X.sum(1)).ravel()[is_query]
    found = {
        "anomics": (probability, probability > LIKELY),
        "total count": (total, np.zeros(len(query), dtype=bool)),
    }
    peers = {"Scrublet": scrublet} | ({"SOLO": solo} if options.solo else {})
    for peer, run in peers.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            score, called = run(cells, seed)
        found[peer] = (score[is_query], called[is_query])
    return [
        {"case": name, "seed": seed, "method": method} | judge(query, *values)
        for method, values in found.items()
    ]


def main() -> None:
    """Run the cases that have not been run, judge all, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the public sets")
    parser.add_argument("--out", type=Path, required=True, help="where runs and the table go")
    parser.add_argument("--python", default=sys.executable, help="that has the pipeline's packages")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--solo", action="store_true", help="SOLO too; needs scvi-tools")
    options = parser.parse_args()
    rows = []
    for name in options.cases:
        for seed in options.seeds:
            rows += rows_of_case(name, seed, options)
            print(pd.DataFrame(rows).tail(4).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "doublets.tsv", sep="\t", index=False, float_format="%.4g")
    means = table.groupby(["case", "method"], sort=False).mean(numeric_only=True)
    print(means.drop(columns="seed").round(3).to_string())


if __name__ == "__main__":
    main()
