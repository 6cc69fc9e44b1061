"""Negative binomial counts whose latent dimensions, library sizes and shares are known."""

from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from design import Design
from held_cells import Cells
from omics_vae.counts import Counts
from omics_vae.data import CountData
from omics_vae.inference import embed
from omics_vae.initialisation import start_from
from omics_vae.model import VAE, Architecture
from stored_counts import ROW

CPU = torch.device("cpu")
NO_DESIGN = Design({}, {}, [])


@dataclass(frozen=True)
class Simulated:
    """Counts and what made them."""

    counts: sp.csr_matrix  # (cells, genes)
    library_size: np.ndarray  # (cells,)
    z: np.ndarray  # (cells, latent)
    mu: np.ndarray  # (cells, genes)
    theta: float

    def data(self, cells=slice(None)) -> CountData:
        return CountData(self.counts[cells], np.log(self.library_size[cells]))


def simulate(
    n_cells: int,
    n_genes: int,
    n_latent: int = 3,
    seed: int = 0,
    depth: float = 2000.0,
    loading: float = 0.6,
    theta: float = 4.0,
) -> Simulated:
    """z ~ N(0, I), shares = softmax of (genes, rest) linear in z, x ~ NB(size * share, theta)."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_cells, n_latent))
    base = rng.normal(0.0, 1.0, n_genes)
    logits = base + z @ rng.normal(0.0, loading, (n_latent, n_genes))
    rest = np.log(np.exp(base).sum() / 2.0)
    weights = np.exp(np.column_stack([logits, np.full(n_cells, rest)]))
    shares = weights / weights.sum(1, keepdims=True)
    size = depth * np.exp(rng.normal(0.0, 0.4, n_cells))
    mu = size[:, None] * shares[:, :-1]
    x = rng.poisson(rng.gamma(theta, mu / theta))
    return Simulated(sp.csr_matrix(x.astype(np.int32)), size, z, mu, theta)


def small_model(
    data: CountData, n_latent: int = 3, n_hidden: int = 16, dropout: float = 0.1, **architecture
) -> VAE:
    """A VAE for ``data``, started from it; the same weights at every call."""
    torch.manual_seed(11)
    model = VAE(Architecture(data.counts.shape[1], n_latent, n_hidden, dropout, **architecture))
    start_from(model, data)
    return model


def gene_names(n_genes: int) -> list[str]:
    return [f"G{g}" for g in range(n_genes)]


def write_counts(folder: Path, adata: ad.AnnData, order: np.ndarray | None = None) -> dict:
    """preprocess/counts.h5ad and model_counts.h5ad of the pipeline; their paths by name.

    ``order``: of the cells in the second, as they are unless given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order = np.arange(adata.n_obs) if order is None else order
    of_model = adata[order, adata.var["selected"].to_numpy()].copy()
    of_model.obs[ROW] = order
    parts = {"counts": adata, "model_counts": of_model}
    for name, part in parts.items():
        part.write_h5ad(folder / f"{name}.h5ad")
    return {name: str(folder / f"{name}.h5ad") for name in parts}


def write_run(
    folder: Path,
    simulated: Simulated,
    split: np.ndarray,
    selected: np.ndarray,
    order: np.ndarray | None = None,
) -> dict:
    """The counts of all genes and of the model's, and library_size.parquet; paths by name."""
    names = [f"cell{i}" for i in range(len(split))]
    role = np.where(split == "query", "query", "reference")
    obs = pd.DataFrame({"sample": "S1", "role": role, "split": split}, index=names)
    var = pd.DataFrame({"selected": selected}, index=gene_names(len(selected)))
    paths = write_counts(folder, ad.AnnData(simulated.counts, obs=obs, var=var), order)
    paths["library_size"] = str(folder / "library_size.parquet")
    pd.DataFrame(
        {
            "cell_id": names,
            "sample": "S1",
            "library_size": simulated.library_size,
            "log_offset": np.log(simulated.library_size),
        }
    ).to_parquet(paths["library_size"])
    return paths


SPLITS = {"train": 200, "validation": 60, "calibration": 100, "query": 60}
N_GENES, N_SELECTED = 60, 40
TRAIN = {
    "likelihood": "nb",
    "dispersion": "gene",
    "gaussian_variance": None,
    "library_size": "observed",
    "decoder": "softmax",
    "n_latent": 4,
    "n_hidden": 16,
    "n_layers": 1,
    "normalization": "layer",
    "dropout": 0.1,
    "skip": "none",
    "prior": "normal",
    "prior_components": 4,
    "covariates": [],
    "encode_covariates": False,
    "batch_size": 64,
    "learning_rate": 0.005,
    "learning_rate_drops": 1,
    "weight_decay": 20.0,
    "beta": 1.0,
    "kl_warmup": "linear",
    "kl_warmup_steps": 20,
    "kl_cycles": 4,
    "free_bits": 0.0,
    "max_steps": 80,
    "validation_interval": 10,
    "validation_cells": 4096,
    "patience": 4,
    "min_improvement": 0.05,
    "precision": "float32",
    "checkpoint_seconds": 0,
}
PRUNE = {
    **{"min_kl": 0.05, "min_ablation": 0.05},
    **{"fine_tune_steps": 20, "fine_tune_learning_rate": 1e-4},
}


def small_run(folder: Path, spike: bool = False) -> dict:
    """Inputs of the model's rules for 420 cells and 60 genes, 40 of them in the model.

    ``spike``: the last 12 query cells have 1000 more of G3 (in the model) and of G55 (not in it).
    """
    simulated = simulate(sum(SPLITS.values()), N_GENES, n_latent=2, seed=8, loading=0.8)
    split = np.repeat(list(SPLITS), list(SPLITS.values()))
    if spike:
        counts = simulated.counts.tolil()
        counts[-12:, 3] = counts[-12:, 3].toarray() + 1000
        counts[-12:, 55] = counts[-12:, 55].toarray() + 1000
        simulated = Simulated(
            counts.tocsr(), simulated.library_size, simulated.z, simulated.mu, simulated.theta
        )
    return write_run(folder, simulated, split, np.arange(N_GENES) < N_SELECTED)


def cells_of(simulated: Simulated, split: np.ndarray, model: VAE, design=NO_DESIGN, **obs) -> Cells:
    """What the detection knows of simulated cells; the first genes are those of the model."""
    n_cells, n_genes = simulated.counts.shape
    n_model = model.architecture.n_genes
    table = pd.DataFrame(
        {"sample": "S1", "role": np.where(split == "query", "query", "reference"), "split": split}
        | obs,
        index=[f"cell{i}" for i in range(n_cells)],
    )
    data = CountData(
        simulated.counts[:, :n_model],
        np.log(simulated.library_size),
        design.covariates(table),
        design.batch_codes(table),
    )
    return Cells(
        obs=table,
        counts=Counts(simulated.counts),
        size=simulated.library_size,
        posterior=embed(model, data, CPU),
        genes=pd.Index(gene_names(n_genes)),
        in_model=np.arange(n_model),
        design=design,
    )


def simulate_types(
    kind: np.ndarray, n_genes: int = 60, seed: int = 0, fold: float = 4.0, depth: float = 500.0
) -> Simulated:
    """Cells of the types ``kind`` (cells,): type k has 8 genes of its own ``fold``-fold."""
    rng = np.random.default_rng(seed)
    shares = np.tile(np.random.default_rng(7).gamma(2.0, size=n_genes), (len(kind), 1))
    for k in np.unique(kind):
        shares[np.ix_(kind == k, np.arange(8 * k, 8 * k + 8))] *= fold
    shares /= shares.sum(1, keepdims=True)
    size = depth * np.exp(rng.normal(0.0, 0.4, len(kind)))
    mu = size[:, None] * shares
    x = rng.poisson(rng.gamma(4.0, mu / 4.0))
    return Simulated(sp.csr_matrix(x.astype(np.int32)), size, np.zeros((len(kind), 0)), mu, 4.0)
