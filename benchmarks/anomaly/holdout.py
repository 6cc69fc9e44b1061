"""Hide a known cell type from the reference and see whether the whole pipeline finds it.

Run it as README.md says. For each case half of the PBMC 3k cells, without the hidden type, are the
reference; the query holds the other half and every cell of the type. In the case "none" nothing is
hidden: what is flagged there is false. The baselines see the very same splits.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import yaml
from scipy.stats import false_discovery_control, ks_2samp, spearmanr
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture

ROOT = Path(__file__).resolve().parents[2]
TYPES = ["B", "NK", "CD14+ Mono"]
NONE = "none"
FAILED_QC = "Unassigned"
ALPHA = 0.1  # false discovery rate, the pipeline's default
NOMINAL = 0.05
FIFTHS = 5
PCA_COMPONENTS = 15
MIXTURE_COMPONENTS = (1, 2, 4, 6, 8, 12, 16)


def assign_roles(labels: np.ndarray, hidden: str, seed: int) -> np.ndarray:
    """reference, query or "" (left out) of each cell (cells,)."""
    role = np.where(labels == FAILED_QC, "", "query").astype(object)
    normal = np.flatnonzero((labels != hidden) & (labels != FAILED_QC))
    drawn = np.random.default_rng(seed).permutation(normal)[: len(normal) // 2]
    role[drawn] = "reference"
    return role


def run_pipeline(source: Path, folder: Path, hidden: str, seed: int, cores: int) -> None:
    """The pipeline with its default config; leaves wall_seconds beside its results."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = ad.read_h5ad(source)
    cells.obs["role"] = assign_roles(cells.obs["cell_type"].astype(str).to_numpy(), hidden, seed)
    cells.write_h5ad(folder / "cells.h5ad")
    table = pd.DataFrame([["PBMC3k", folder / "cells.h5ad", "obs:role"]])
    table.to_csv(folder / "samples.tsv", sep="\t", index=False, header=["sample", "path", "role"])
    config = {"run": "holdout", "samples": str(folder / "samples.tsv"), "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--profile", ROOT / "profiles" / "default", "--directory", folder]
    command += ["--configfile", folder / "config.yaml", "--cores", str(cores), "--quiet", "all"]
    started = time.monotonic()
    subprocess.run(command, check=True)
    (folder / "wall_seconds").write_text(f"{time.monotonic() - started:.1f}\n")


def conformal_p(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """(1 + #{calibration >= s}) / (n + 1), written again: a judge borrows nothing of the judged."""
    at_least = (calibration[None, :] >= scores[:, None]).sum(1)
    return (1 + at_least) / (len(calibration) + 1)


def flag(scores: np.ndarray, calibration: np.ndarray, alpha: float) -> np.ndarray:
    """Benjamini-Hochberg at level ``alpha`` on the conformal p-values (cells,) bool."""
    return false_discovery_control(conformal_p(scores, calibration)) <= alpha


def power(is_hidden: np.ndarray, score: np.ndarray, flagged: np.ndarray) -> dict:
    """How well the score ranks the hidden type, and what flagging it at the FDR gave."""
    false = int((flagged & ~is_hidden).sum())
    return {
        "auroc": roc_auc_score(is_hidden, score),
        "auprc": average_precision_score(is_hidden, score),
        "recall": flagged[is_hidden].mean(),
        "fdp": false / max(1, flagged.sum()),
        "n_flagged": int(flagged.sum()),
    }


def validity(cells: pd.DataFrame) -> dict:
    """What the p-values of a query without anomalies look like.

    ``ks``: the largest distance of their distribution from the uniform one. Ranked against the same
    calibration cells they depend on each other, so ``ks_p`` is that of the two-sample test, query
    against calibration scores, and not that of a test of uniformity, which would reject too often.
    """
    query, calibration = (cells[cells["split"] == name] for name in ("query", "calibration"))
    test = ks_2samp(query["score"], calibration["score"])
    by_depth = query.sort_values("library_size", kind="stable")["p_value"].to_numpy() <= NOMINAL
    fifths = [float(part.mean()) for part in np.array_split(by_depth, FIFTHS)]
    return {
        "n_query": len(query),
        "n_calibration": len(calibration),
        "ks": test.statistic,
        "ks_p": test.pvalue,
        "spearman_depth": spearmanr(query["score"], query["library_size"]).statistic,
        "fpr": by_depth.mean(),
        **{f"fpr_depth_{i}": rate for i, rate in enumerate(fifths, start=1)},
        "n_flagged": int(query["is_anomaly"].sum()),
    }


def total_count_score(log_total: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Distance of log total count from the median of the ``fit`` cells: both tails (cells,)."""
    return np.abs(log_total - np.median(log_total[fit]))


def pca_error_score(X: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Squared distance from the principal components of the ``fit`` cells (cells,)."""
    pca = PCA(PCA_COMPONENTS, random_state=0).fit(X[fit])
    return np.square(X - pca.inverse_transform(pca.transform(X))).sum(1)


def pca_mixture_score(X: np.ndarray, train: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """-log density on principal components under a Gaussian mixture (cells,).

    The validation cells choose the number of components; then they join the training cells.
    """
    fit = train | validation
    Z = PCA(PCA_COMPONENTS, random_state=0).fit(X[fit]).transform(X)
    settings = {"reg_covar": 1e-2, "random_state": 0}
    held_out = [
        GaussianMixture(k, **settings).fit(Z[train]).score(Z[validation])
        for k in MIXTURE_COMPONENTS
    ]
    best = MIXTURE_COMPONENTS[int(np.argmax(held_out))]
    return -GaussianMixture(best, **settings).fit(Z[fit]).score_samples(Z)


def baseline_scores(annotated: ad.AnnData) -> dict[str, np.ndarray]:
    """Every baseline's score of all cells of a run (cells,), larger is odder."""
    split = annotated.obs["split"].astype(str).to_numpy()
    train, validation = split == "train", split == "validation"
    X = annotated[:, annotated.var["selected"].to_numpy()].X.toarray()
    log_total = np.log(annotated.layers["counts"].sum(1)).A1
    return {
        "total count": total_count_score(log_total, train | validation),
        "PCA error": pca_error_score(X, train | validation),
        "PCA + mixture": pca_mixture_score(X, train, validation),
    }


def judge(folder: Path, hidden: str) -> list[dict]:
    """One row a method for a finished run."""
    results = folder / "results" / "holdout"
    annotated = ad.read_h5ad(results / "annotated.h5ad")
    cells = pd.read_csv(results / "anomaly" / "cells.tsv", sep="\t").set_index("cell_id")
    split = annotated.obs["split"].astype(str).to_numpy()
    query, calibration = split == "query", split == "calibration"
    is_hidden = (annotated.obs["cell_type"].astype(str) == hidden).to_numpy()[query]
    cells = cells.loc[annotated.obs_names[query]]
    flags = {"anomics": (cells["score"].to_numpy(), cells["is_anomaly"].to_numpy(bool))}
    for method, score in baseline_scores(annotated).items():
        flags[method] = (score[query], flag(score[query], score[calibration], ALPHA))
    counts = {"n_query": int(query.sum()), "n_hidden": int(is_hidden.sum())}
    return [{"method": m, **counts, **power(is_hidden, *found)} for m, found in flags.items()]


def rule_seconds(folder: Path) -> pd.Series:
    """Seconds of each rule of a finished run."""
    benchmarks = folder / "results" / "holdout" / "benchmarks"
    times: dict[str, float] = {}
    for path in sorted(benchmarks.rglob("*.jsonl")):
        rule = path.relative_to(benchmarks).parts[0].removesuffix(".jsonl")
        times[rule] = times.get(rule, 0.0) + json.loads(path.read_text().splitlines()[-1])["s"]
    return pd.Series(times)


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown; numbers with three decimals."""
    shown = table.map(lambda v: f"{v:.3f}" if isinstance(v, float) else str(v))
    rows = [table.columns, ["---"] * len(table.columns), *shown.to_numpy()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main() -> None:
    """Run the cases that have not been run, judge all, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with pbmc3k.h5ad")
    parser.add_argument("--out", type=Path, required=True, help="where runs and tables go")
    parser.add_argument("--types", nargs="+", default=TYPES, help="types to hide, one at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="for the hidden types")
    parser.add_argument("--normal-seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    out = options.out.resolve()
    cases = [(hidden, seed) for hidden in options.types for seed in options.seeds]
    cases += [(NONE, seed) for seed in options.normal_seeds]
    found, normal, times = [], [], {}
    for hidden, seed in cases:
        folder = out / f"{hidden.replace(' ', '_')}_seed{seed}"
        if not (folder / "wall_seconds").exists():
            run_pipeline(options.data / "pbmc3k.h5ad", folder, hidden, seed, options.cores)
        wall = float((folder / "wall_seconds").read_text())
        times[folder.name] = rule_seconds(folder)
        if hidden == NONE:
            cells = pd.read_parquet(folder / "results" / "holdout" / "anomaly" / "cells.parquet")
            normal.append({"seed": seed, **validity(cells), "wall_s": wall})
        else:
            case = {"hidden": hidden, "seed": seed, "wall_s": wall}
            found += [case | row for row in judge(folder, hidden)]
        print(f"{folder.name}: {wall:.0f} s", flush=True)
    by_rule = pd.DataFrame(times).mean(axis=1).sort_values(ascending=False)
    rules = by_rule.rename("mean_seconds").rename_axis("rule").reset_index()
    tables = {"hidden": pd.DataFrame(found), "normal": pd.DataFrame(normal), "rules": rules}
    for name, table in tables.items():
        table.to_csv(out / f"{name}.tsv", sep="\t", index=False, float_format="%.4g")
    text = [f"## {name}\n\n{markdown(table)}" for name, table in tables.items()]
    (out / "holdout.md").write_text("\n".join(text))
    print((out / "holdout.md").read_text())


if __name__ == "__main__":
    main()
