"""The channels of evidence of each cell, from the model's residuals and the latent space."""

from collections.abc import Iterator
from functools import cached_property

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from job import InputError
from latent_place import mixture_surprise, neighbour_distance
from model_inputs import read_library_size
from omics_vae import anomaly
from omics_vae.data import CountData
from omics_vae.inference import dispersion, expected_counts
from omics_vae.model import VAE

# Channel: its kind, and what it looks at. Channels of a kind are averaged before the combination:
# alike as they are, each would otherwise have a vote of its own.
CHANNELS = {
    "program": ("residuals", "mean -log p of the most surprising genes"),
    "single_gene": ("residuals", "-log p of the most surprising gene"),
    "profile": ("residuals", "negative binomial deviance over all genes of the model"),
    "shared_program": ("shared", "residuals along the programs that held-out cells share"),
    "latent_density": ("place", "-log density of the latent position in the reference"),
    "latent_distance": ("place", "distance to the nearest reference cells in latent space"),
    "unseen_genes": ("unseen", "counts in genes that the reference hardly shows"),
}
# The shared axes need a matrix of genes x genes; the genes with the most counts say most in it.
SHARED_GENES = 4000


class Cells:
    """Counts, depth, split and latent position of all cells, in the order of counts.h5ad."""

    def __init__(self, counts: str, library_size: str, latent: str, genes: list[str]):
        adata = ad.read_h5ad(counts)
        self.obs = adata.obs
        self.size = read_library_size(library_size, adata.obs_names)["library_size"].to_numpy()
        table = pd.read_parquet(latent)
        means = [name for name in table.columns if name.startswith("mean_")]
        self.latent = table[means].to_numpy(np.float64)
        self.counts = sp.csr_matrix(adata.X)
        self.genes = adata.var_names
        self.in_model = adata.var_names.get_indexer(genes)
        if (self.in_model < 0).any() or not np.array_equal(table["cell_id"], adata.obs_names):
            raise InputError(
                f"{latent}: model, latent and counts are not of one run; delete the folders train, "
                "prune and embed and run the same command"
            )
        self.split = adata.obs["split"].astype(str).to_numpy()

    def of(self, *splits: str) -> np.ndarray:
        """Positions of the cells of some splits."""
        return np.flatnonzero(np.isin(self.split, splits))

    @cached_property
    def pooled_rates(self) -> np.ndarray:
        """Counts of each gene per unit of library size in the cells the model was made with."""
        seen = self.of("train", "validation")
        return anomaly.pooled_rates(self.counts[seen], self.size[seen])

    def model_data(self, cells: np.ndarray) -> CountData:
        """Counts of some cells in the model's genes."""
        return CountData(self.counts[cells][:, self.in_model], np.log(self.size[cells]))


def observed_and_expected(
    model: VAE, cells: Cells, scored: np.ndarray, data: CountData, device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of counts and their decoded means (cells, genes) of the ``scored`` cells."""
    for chunk, mu in expected_counts(model, cells.latent[scored], data.log_offset, device):
        yield data.counts[chunk].toarray().astype(np.float64), mu


def raw_channels(
    model: VAE, cells: Cells, scored: np.ndarray, settings: dict, seed: int, device
) -> dict[str, np.ndarray]:
    """Every channel of the ``scored`` cells, before the standardisation by depth."""
    data, theta = cells.model_data(scored), dispersion(model)
    parts: dict[str, list] = {}
    shared = np.sort(
        np.argsort(-np.asarray(data.counts.sum(0)).ravel(), kind="stable")[:SHARED_GENES]
    )
    moment, total = np.zeros((len(shared), len(shared))), np.zeros(len(shared))
    for x, mu in observed_and_expected(model, cells, scored, data, device):
        found = anomaly.residual_channels(x, mu, theta, settings["program_genes"])
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
        residuals = anomaly.pearson_residuals(x[:, shared], mu[:, shared], theta[shared])
        moment += residuals.T @ residuals
        total += residuals.sum(0)
    axes = anomaly.shared_axes(len(scored), moment, total)
    # Decoded a second time: keeping the residuals of all cells would cost cells x genes of memory.
    along = [
        anomaly.pearson_residuals(x[:, shared], mu[:, shared], theta[shared]) @ axes
        for x, mu in observed_and_expected(model, cells, scored, data, device)
    ]
    channels = {name: np.concatenate(values) for name, values in parts.items()}
    normal = cells.split[scored] != "query"
    channels["shared_program"] = anomaly.shared_program_channel(np.concatenate(along), normal)
    train, validation = cells.latent[cells.of("train")], cells.latent[cells.of("validation")]
    place = cells.latent[scored]
    channels["latent_density"] = mixture_surprise(train, validation, place, seed)
    channels["latent_distance"] = neighbour_distance(train, place)
    unseen = anomaly.unseen_genes_channel(
        cells.counts[scored],
        cells.size[scored],
        cells.pooled_rates,
        float(np.median(cells.size[cells.of("train", "validation")])),
    )
    return channels if unseen is None else channels | {"unseen_genes": unseen}


def standardise(
    channels: dict[str, np.ndarray], log_depth: np.ndarray, normal: np.ndarray
) -> dict[str, np.ndarray]:
    """Each channel in SDs above what held-out normal cells of the same depth show."""
    result = {}
    for name, score in channels.items():
        standard = anomaly.DepthStandard.fit(score[normal], log_depth[normal])
        result[name] = standard.apply(score, log_depth)
    return result
