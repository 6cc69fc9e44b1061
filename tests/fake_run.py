"""A plausible finished run, invented: every table and summary that figures and report read.

    write_fake_run(folder, n_samples=3, n_cells=900, share_odd=0.05)
    write_fake_run(folder, is_ranking=True)     # without a query
    write_fake_run(folder, is_bulk=True)        # rows are samples, of which none is a doublet
    write_optional_stages(folder)     # likelihood: auto, a grid of betas, three seeds
    write_check(folder)               # anomalies put into normal cells

The cells are points of a few groups, not counts of real genes; nothing here is a result.
"""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from configuration import check_config
from fake_reasons import save, summary, write_reasons

N_GENES = 60
N_LATENT = 6
SPLITS = ("train", "validation", "calibration")
HOSTILE = "<script>alert(1)</script>"
SCHEMA = Path(__file__).resolve().parent.parent / "workflow" / "schemas" / "config.schema.yaml"


def config_with(**sections) -> dict:
    return check_config({"run": "first-look", "samples": "s.tsv"} | sections, SCHEMA)


CONFIG = config_with(
    seed=7,
    preprocess={
        "filter_cells": {"min_counts": 321, "max_counts": None, "n_mads": 4},
        "select_features": {"n_features": 1234, "min_cells": 9},
        "split": {"validation": 0.15, "calibration": 0.35},
    },
    library_size={"method": "median_of_ratios"},
    train={"n_latent": 17},
)


def make_cells(
    n_samples: int, n_cells: int, share_odd: float, is_ranking: bool, rng, name: str = "CELL"
) -> pd.DataFrame:
    """One row a cell: sample, role, split, library size, group and, for scored cells, results.

    The first half of the samples is the reference; a lone sample holds both roles. Of a ranking all
    cells are reference, trained on, and scored.
    """
    sample = np.array([f"donor{i + 1}" for i in range(n_samples)])[
        np.sort(rng.integers(0, n_samples, n_cells))
    ]
    n_reference = n_samples // 2
    is_reference = np.isin(sample, [f"donor{i + 1}" for i in range(n_reference)])
    if n_samples == 1:
        is_reference = np.arange(n_cells) % 2 == 0
    split = np.where(is_reference, rng.choice(SPLITS, n_cells, p=[0.6, 0.1, 0.3]), "query")
    if is_ranking:
        is_reference, split = np.full(n_cells, True), rng.choice(SPLITS[:2], n_cells, p=[0.9, 0.1])
    cells = pd.DataFrame({"cell": [f"{name}{i:06d}" for i in range(n_cells)], "sample": sample})
    cells["cell_id"] = cells["cell"] + "-1"
    cells["role"] = np.where(is_reference, "reference", "query")
    cells["split"] = split
    cells["library_size"] = np.exp(rng.normal(8.3, 0.5, n_cells))
    cells["cell_type"] = rng.choice(["B cell", "T cell", "monocyte", "NK cell"], n_cells)
    judged = (split == "query") | is_ranking
    scored = judged | (split == "calibration")
    odd = judged & (rng.random(n_cells) < share_odd)
    score = np.where(odd, rng.normal(9, 1, n_cells), rng.normal(0, 1, n_cells))
    calibration = np.sort(score[~odd if is_ranking else split == "calibration"])
    above = len(calibration) - np.searchsorted(calibration, score)
    p = (1 + above) / (1 + len(calibration))
    cells["score"] = np.where(scored, score, np.nan)
    cells["p_value"] = np.where(scored, p, np.nan)
    cells["q_value"] = np.where(judged, np.where(odd, 0.05, 0.6), np.nan)
    cells["is_anomaly"] = odd
    return cells


def _write_input_stages(run: Path, cells: pd.DataFrame, rng) -> None:
    for name, group in cells.groupby("sample"):
        qc = pd.DataFrame({"cell": group["cell"], "sample": name, "role": group["role"]})
        qc["total_counts"] = group["library_size"].round().astype(int)
        qc["n_genes"] = (qc["total_counts"] ** 0.85).round().astype(int)
        for column, centre in (("pct_mito", 4), ("pct_ribo", 20), ("pct_hb", 0.05)):
            qc[column] = rng.gamma(4, centre / 4, len(qc))
        qc["kept"] = qc["pct_mito"] < 9
        qc["reasons"] = np.where(qc["kept"], "", "pct_mito above 9")
        save(qc, run / f"preprocess/{name}.qc.parquet")
        limits = {
            "min_counts": {"value": 500, "origin": "config"},
            "max_pct_mito": {"value": 9.0, "origin": "median + 5 MAD"},
            "max_counts": None,
        }
        summary(
            run / f"preprocess/{name}.summary.json",
            **{"n_cells": len(qc), "n_kept": int(qc["kept"].sum()), "limits": limits},
            dropped_by=[
                {"quantity": "pct_mito", "side": "upper", "limit": 9.0, "origin": "median + 5 MAD"}
                | {"n_dropped": int((~qc["kept"]).sum())}
            ],
        )
        summary(
            run / f"import/{name}.summary.json",
            **{"format": "10x_h5", "path": f"data/{name}.h5", "n_cells": len(qc)},
            n_genes=N_GENES,
            **{"dropped_features": {"Antibody Capture": 17}, "n_cells_without_role": 0},
        )


def _write_counts(run: Path, cells: pd.DataFrame, rng) -> None:
    obs = cells.set_index("cell_id")[["cell", "sample", "role", "split", "cell_type"]]
    for column in ("sample", "role", "split", "cell_type"):
        obs[column] = obs[column].astype("category")
    rate = 0.5 * cells["library_size"].to_numpy()[:, None] / cells["library_size"].median()
    X = sparse.csr_matrix(rng.poisson(rate, (len(cells), N_GENES)).astype(np.int32))
    var = pd.DataFrame({"selected": True}, index=[f"GENE{i}" for i in range(N_GENES)])
    anndata.AnnData(X, obs=obs, var=var).write_h5ad(run / "preprocess/counts.h5ad")
    splits = cells.groupby(["sample", "role", "split"]).size().rename("n_cells").reset_index()
    save(splits, run / "preprocess/splits.tsv")
    summary(
        run / "preprocess/summary.json",
        **{"n_cells": len(cells), "n_genes": N_GENES, "n_selected": 40, "split_by": "cell"},
        **{"selected_by": {"variable": 33, "list": 5, "variable, list": 2, "": N_GENES - 40}},
        **{"method": "all: seurat_v3, span 0.3", "n_genes_shared": N_GENES + 9},
        **{"n_genes_in_too_few_cells": 9, "n_empty_cells_dropped": 6},
        n_genes_lost_in_join={name: 23 * i for i, name in enumerate(sorted(set(cells["sample"])))},
        splits={k: int(n) for k, n in cells["split"].value_counts().items()},
    )
    sizes = cells[["cell_id", "sample", "role", "library_size"]]
    save(
        sizes.assign(log_offset=np.log(sizes["library_size"])),
        run / "library_size/library_size.parquet",
    )
    levels = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
    grouped = sizes.groupby("sample")["library_size"]
    by_sample = pd.DataFrame({name: grouped.quantile(q) for name, q in levels.items()})
    save(by_sample.assign(n_cells=grouped.size()).reset_index(), run / "library_size/samples.tsv")
    summary(run / "library_size/summary.json", method="total")


def _write_model_stages(run: Path, cells: pd.DataFrame, rng) -> None:
    step = np.arange(100, 2100, 100)
    history = pd.DataFrame({"step": step, "epoch": step // 100, "beta": np.minimum(1, step / 800)})
    history["learning_rate"] = 1e-3
    history["train_elbo"] = -600 - 400 * np.exp(-step / 300)
    history["validation_elbo"] = history["train_elbo"] - 4 - step / 1000
    history["validation_reconstruction"] = history["validation_elbo"] + 12
    history["validation_kl"] = 12.0
    history["active_units"] = np.minimum(4, 1 + step // 300)
    history["mutual_information"] = 4 * (1 - np.exp(-step / 500))
    save(history, run / "train/seed1/history.parquet")
    kl_end = np.array([4.0, 3.1, 2.2, 0.9, 0.02, 0.01])
    kl = pd.DataFrame(
        [(s, d, kl_end[d] * (1 - np.exp(-s / 400))) for s in step for d in range(N_LATENT)],
        columns=["step", "dimension", "kl"],
    )
    save(kl, run / "train/seed1/kl.parquet")
    n = cells["split"].value_counts()
    summary(
        run / "train/seed1/summary.json",
        **{"best_step": 1500, "stopped_by": "early stopping", "warmup_ends_at_step": 800},
        **{"n_train": int(n.get("train", 0)), "n_validation": int(n.get("validation", 0))},
        **{
            "device": "cpu",
            "threads": 2,
            "precision": "float32",
            "seed": 1,
            "active_units": 4,
            "beta": 1,
        },
        **{"architecture": {"likelihood": "nb", "n_latent": N_LATENT}, "n_latent": N_LATENT},
        **{"elbo": -606.1, "elbo_se": 1.2, "rate": 10.2, "distortion": 595.9},
        **{"mutual_information": 3.96, "signal_axes": 5, "collapse": None},
    )
    evidence = pd.DataFrame({"dimension": range(N_LATENT), "kl": kl_end})
    evidence["kl_se"] = 0.02
    evidence["aggregated_kl"] = 0.1 * kl_end
    evidence["mean_variance"] = kl_end / 5
    evidence["ablation"] = 2.5 * kl_end - 0.02
    evidence["ablation_se"] = 0.3
    evidence["kept"] = kl_end > 0.1
    evidence["sure"] = np.arange(N_LATENT) != 4
    evidence["reason"] = np.where(evidence["kept"], "used", "unused by every test")
    save(evidence, run / "prune/seed1/evidence.parquet")
    elbo = pd.DataFrame({"stage": ["trained", "cut", "fine-tuned"], "n_latent": [6, 4, 4]})
    elbo["elbo"], elbo["elbo_se"] = [-606.1, -606.4, -605.9], 1.2
    elbo["reconstruction"], elbo["kl"] = [-595.9, -596.2, -595.7], 10.2
    save(elbo, run / "prune/seed1/elbo.tsv")
    summary(
        run / "prune/seed1/summary.json",
        **{"n_latent": 6, "n_kept": 4, "n_kept_range": [4, 5], "n_would_stay_again": 4},
        **{"min_kl": 0.1, "min_ablation": 0.05},
    )
    latent = cells[["cell_id"]].copy()
    for d in range(4):
        latent[f"mean_{d}"] = rng.normal(0, 1, len(cells)) + 4 * (cells["cell_type"] == "B cell")
    for d in range(4):
        latent[f"variance_{d}"] = 0.1
    latent["log_size"], latent["log_size_variance"] = np.log(cells["library_size"]), 0.0
    save(latent, run / "embed/seed1/latent.parquet")
    plane = cells[["cell_id"]].assign(
        umap_1=latent["mean_0"] + cells["is_anomaly"] * 3.0, umap_2=latent["mean_1"]
    )
    save(plane, run / "embed/seed1/umap.parquet")


def _write_evidence(run: Path, cells: pd.DataFrame) -> None:
    """As measure_evidence: a group of one cell has no standard error."""
    held_out = cells[cells["split"] != "train"]
    tables = [
        held_out.groupby(name).size().rename("n_cells").rename_axis("group").reset_index()
        for name in ("split", "sample", "cell_type")
    ]
    names = np.repeat(["split", "sample", "cell_type"], [len(table) for table in tables])
    groups = pd.concat(tables).reset_index(drop=True)
    groups.insert(0, "grouped_by", names)
    groups["elbo"], groups["elbo_refined"], groups["log_p"] = -605.5, -604.6, -603.2
    groups["gap"] = 0.87
    groups["gap_se"] = np.where(groups["n_cells"] > 1, 0.031, np.nan)
    groups["effective_samples"] = 17.5
    save(groups, run / "evidence/groups.tsv")
    summary(
        run / "evidence/summary.json",
        **{"n_cells": len(held_out), "n_normal": int((held_out["split"] != "query").sum())},
        **{"samples": 50, "elbo": -605.5, "log_p": -603.2, "gap": 0.87, "gap_se": 0.01},
        **{"effective_samples": 17.5, "refine_steps": 30, "for_scores": False},
    )


def write_optional_stages(run: Path) -> Path:
    """What a finished run has with likelihood: auto, a grid of betas and three seeds."""
    comparison = pd.DataFrame({"likelihood": ["zinb", "nb", "poisson"]})
    comparison["log_p"], comparison["log_p_se"] = [-603.1, -603.2, -640.6], 1.1
    comparison["difference"], comparison["difference_se"] = [0.1, 0.0, -37.4], [0.07, 0.0, 1.3]
    comparison["chosen"] = comparison["likelihood"] == "nb"
    save(comparison, run / "likelihood/comparison.tsv")
    summary(
        run / "likelihood/summary.json",
        **{"chosen": "nb", "n_cells": 77, "samples": 50},
        zeros="Zero inflation is not supported by the data (+0.1 ± 0.07 nats a cell against the "
        "negative binomial, standard error).",
    )
    curve = pd.DataFrame({"beta": [0.5, 1.0, 2.0, 4.0], "rate": [14.0, 10.2, 6.5, 6.6]})
    curve["distortion"] = [594.0, 595.9, 599.0, 604.0]
    curve["elbo"] = -curve["rate"] - curve["distortion"]
    curve["gain"], curve["gain_se"] = curve["elbo"] + 606.1, [0.4, 0.0, 0.3, 0.5]
    curve["active_units"], curve["mutual_information"] = [5, 4, 3, 3], [3.97, 3.96, 3.5, 3.4]
    curve["on_envelope"], curve["chosen"] = [True, True, True, False], curve["beta"] == 1
    save(curve, run / "rate_distortion/curve.tsv")
    summary(
        run / "rate_distortion/summary.json",
        ["beta = 0.5 has a held-out ELBO 3 nats a cell above; consider train.beta: 0.5."],
        **{"betas": curve["beta"].tolist(), "chosen": 1, "n_validation": 77},
    )
    pairs = pd.DataFrame({"seed": [1, 1, 2], "other_seed": [2, 3, 3]})
    pairs["n_latent"], pairs["n_latent_other"] = [4, 4, 5], [5, 4, 4]
    pairs["canonical_correlation_mean"] = [0.97, 0.96, 0.95]
    pairs["canonical_correlation_smallest"] = [0.91, 0.9, 0.89]
    pairs["shared_neighbours"], pairs["score_spearman"] = [0.61, 0.6, 0.59], [0.93, 0.92, 0.94]
    pairs["flagged_both"], pairs["flagged_either"] = [18, 17, 19], [21, 22, 23]
    save(pairs, run / "stability/pairs.tsv")
    summary(
        run / "stability/summary.json",
        **{"seeds": [1, 2, 3], "n_cells": 900, "n_flagged_by_all": 16, "n_flagged_by_any": 24},
    )
    return run


def write_fake_run(
    run: Path,
    n_samples: int = 3,
    n_cells: int = 900,
    share_odd: float = 0.05,
    warnings: tuple[str, ...] = (),
    gene: str = "GENE0",
    group: str = "T cell",
    is_ranking: bool = False,
    is_bulk: bool = False,
    seed: int = 1,
    cell: str = "CELL",
) -> Path:
    """Fill ``run`` with the files of a finished run, as the contract of the stages has them."""
    rng = np.random.default_rng(seed)
    cells = make_cells(n_samples, n_cells, share_odd, is_ranking, rng, cell)
    _write_input_stages(run, cells, rng)
    _write_counts(run, cells, rng)
    _write_model_stages(run, cells, rng)
    _write_evidence(run, cells)
    write_reasons(run, cells, list(warnings), gene, group, is_bulk)
    return run
