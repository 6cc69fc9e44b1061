"""Cells with all that the detection knows of them: counts, depth, latent posterior, metadata."""

from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from design import Design
from job import InputError
from model_inputs import embedding_of, hold_out, read_library_size
from omics_vae.data import CountData
from omics_vae.inference import Embedding, embed
from omics_vae.model import VAE, load_model


@dataclass(frozen=True)
class Cells:
    """Some cells of a run, or cells made from them; rows alike in all that has a row a cell."""

    obs: pd.DataFrame  # index cell_id; split, sample, role and the user's columns
    counts: sp.csr_matrix  # (cells, genes), all genes of counts.h5ad
    size: np.ndarray  # (cells,) library size
    posterior: Embedding
    genes: pd.Index
    in_model: np.ndarray  # positions of the model's genes among ``genes``, in the model's order
    design: Design

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def split(self) -> np.ndarray:
        """train, validation, calibration or query (cells,)."""
        return self.obs["split"].astype(str).to_numpy()

    @property
    def latent(self) -> np.ndarray:
        """Posterior means (cells, latent) float64."""
        return self.posterior.mean.astype(np.float64)

    @property
    def log_depth(self) -> np.ndarray:
        """Natural log of the library size (cells,)."""
        return np.log(self.size)

    @property
    def data(self) -> CountData:
        """What the model is given of these cells."""
        return CountData(
            self.counts[:, self.in_model],
            self.log_depth,
            self.design.covariates(self.obs),
            self.design.batch_codes(self.obs),
        )

    def take(self, cells: np.ndarray) -> "Cells":
        """Some of these cells: positions, which may repeat, or a boolean mask."""
        return replace(
            self,
            obs=self.obs.iloc[np.arange(len(self))[cells]],
            counts=self.counts[cells],
            size=self.size[cells],
            posterior=self.posterior.take(cells),
        )

    def of(self, *splits: str) -> "Cells":
        """The cells of some splits."""
        return self.take(np.isin(self.split, splits))

    def with_counts(self, counts: sp.csr_matrix, model: VAE, device) -> "Cells":
        """The same cells with other counts: library sizes follow, the encoder embeds them anew.

        The library size grows in proportion to the total count, whatever it was computed by.
        """
        total = np.asarray(self.counts.sum(1), dtype=np.float64).ravel()
        changed = np.asarray(counts.sum(1), dtype=np.float64).ravel()
        cells = replace(self, counts=counts, size=self.size * (changed / total))
        return replace(cells, posterior=embed(model, cells.data, device))


def join_cells(parts: list[Cells]) -> Cells:
    """Cells of one model, one after the other."""
    posteriors = [part.posterior for part in parts]
    return replace(
        parts[0],
        obs=pd.concat([part.obs for part in parts]),
        counts=sp.vstack([part.counts for part in parts], format="csr"),
        size=np.concatenate([part.size for part in parts]),
        posterior=Embedding(
            *(
                np.concatenate([getattr(posterior, name) for posterior in posteriors])
                for name in Embedding.__dataclass_fields__
            )
        ),
    )


def read_cells(
    counts: str,
    library_size: str,
    latent: str,
    description: dict,
    fold: int | None = None,
    held: np.ndarray | None = None,
) -> Cells:
    """All cells in the order of counts.h5ad.

    ``description``: the model's, with its genes and its design; ``fold`` and ``held`` (cell_id):
    cells that it has not seen. Raises InputError where the files are not of one run.
    """
    return cells_of(*read_counts(counts, library_size), latent, description, fold, held)


def read_counts(counts: str, library_size: str) -> tuple[ad.AnnData, np.ndarray]:
    """All cells with their counts as CSR, and their library sizes (cells,)."""
    adata = ad.read_h5ad(counts)
    adata.X = sp.csr_matrix(adata.X)
    size = read_library_size(library_size, adata.obs_names)["library_size"].to_numpy()
    return adata, size


def cells_of(
    adata: ad.AnnData,
    size: np.ndarray,
    latent: str,
    description: dict,
    fold: int | None = None,
    held: np.ndarray | None = None,
) -> Cells:
    """As :func:`read_cells`, of counts that are read already and may serve other fits too."""
    table = pd.read_parquet(latent)
    in_model = adata.var_names.get_indexer(description["genes"])
    if (in_model < 0).any() or not np.array_equal(table["cell_id"], adata.obs_names):
        raise InputError(
            f"{latent}: model, latent and counts are not of one run; delete the folders train, "
            "prune and embed and run the same command"
        )
    return Cells(
        obs=hold_out(adata.obs, fold, held),
        counts=adata.X,
        size=size,
        posterior=embedding_of(table),
        genes=adata.var_names,
        in_model=in_model,
        design=Design(**description["design"]),
    )


def read_fits(files, folds: list[int | None]) -> list[tuple[VAE, Cells]]:
    """Each scoring model with all cells, those that it scores as its query."""
    fits, counts = [], read_counts(files.counts, files.library_size)
    paths = zip(files.weights, files.descriptions, files.latents, folds, strict=True)
    for weights, description, latent, fold in paths:
        model, content = load_model(weights, description)
        fits.append((model, cells_of(*counts, latent, content, fold)))
    return fits
