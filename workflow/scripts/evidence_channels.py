"""The channels of evidence of each cell, from the model's residuals and the latent space."""

from functools import cached_property

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from design import Design
from job import InputError
from latent_place import mixture_surprise, neighbour_distance
from model_inputs import embedding_of, read_library_size
from omics_vae import anomaly
from omics_vae.data import CountData
from omics_vae.inference import decoded
from omics_vae.model import VAE

# Channel: its kind, and what it looks at. Channels of a kind are averaged before the combination:
# alike as they are, each would otherwise have a vote of its own.
CHANNELS = {
    "program": ("residuals", "mean -log p of the most surprising genes"),
    "single_gene": ("residuals", "-log p of the most surprising gene"),
    "profile": ("residuals", "deviance from the expected counts over all genes of the model"),
    "shared_program": ("shared", "residuals along the programs that held-out cells share"),
    "latent_density": ("place", "-log density of the latent position in the reference"),
    "latent_distance": ("place", "distance to the nearest reference cells in latent space"),
    "unseen_genes": ("unseen", "counts in genes that the reference hardly shows"),
}
# The shared axes need a matrix of genes x genes; the genes with the most counts say most in it.
SHARED_GENES = 4000


class Cells:
    """Counts, depth, split and latent position of all cells, in the order of counts.h5ad."""

    def __init__(self, counts: str, library_size: str, latent: str, description: dict):
        """``description``: the model's, with its genes and its design."""
        adata = ad.read_h5ad(counts)
        self.obs = adata.obs
        self.size = read_library_size(library_size, adata.obs_names)["library_size"].to_numpy()
        table = pd.read_parquet(latent)
        self.posterior = embedding_of(table)
        self.latent = self.posterior.mean.astype(np.float64)
        self.counts = sp.csr_matrix(adata.X)
        self.genes = adata.var_names
        self.in_model = adata.var_names.get_indexer(description["genes"])
        self.design = Design(**description["design"])
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
        """What the model is given of some cells."""
        obs = self.obs.iloc[cells]
        return CountData(
            self.counts[cells][:, self.in_model],
            np.log(self.size[cells]),
            self.design.covariates(obs),
            self.design.batch_codes(obs),
        )


def raw_channels(
    model: VAE, cells: Cells, scored: np.ndarray, settings: dict, seed: int, device
) -> dict[str, np.ndarray]:
    """Every channel of the ``scored`` cells, before the standardisation by depth."""
    data, at = cells.model_data(scored), cells.posterior.take(scored)
    parts: dict[str, list] = {}
    shared = np.sort(
        np.argsort(-np.asarray(data.counts.sum(0)).ravel(), kind="stable")[:SHARED_GENES]
    )
    moment, total = np.zeros((len(shared), len(shared))), np.zeros(len(shared))
    for _, x, expected in decoded(model, data, at, device):
        found = anomaly.residual_channels(x, expected, settings["program_genes"])
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
        residuals = anomaly.pearson_residuals(x, expected)[:, shared]
        moment += residuals.T @ residuals
        total += residuals.sum(0)
    axes = anomaly.shared_axes(len(scored), moment, total)
    # Decoded a second time: keeping the residuals of all cells would cost cells x genes of memory.
    along = [
        anomaly.pearson_residuals(x, expected)[:, shared] @ axes
        for _, x, expected in decoded(model, data, at, device)
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
