"""Cells with all that the detection knows of them: counts, depth, latent posterior, metadata."""

import zlib
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from design import Design
from job import InputError
from model_inputs import INPUT_NAMES, embedding_of, hold_out, read_library_size
from omics_vae.counts import Counts
from omics_vae.data import CountData
from omics_vae.inference import Embedding, embed
from omics_vae.model import VAE, load_model
from stored_counts import CountFile

# Scoring decodes for a fraction of its time; its statistics run on the CPU, and a GPU would idle.
SCORING_DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Cells:
    """Some cells of a run, or cells made from them; rows alike in all that has a row a cell."""

    obs: pd.DataFrame  # index cell_id; split, sample, role and the user's columns
    counts: Counts  # (cells, genes), all genes of counts.h5ad
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
        return self.obs["split"].astype(object).to_numpy()

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
            self.counts.of_genes(self.in_model),
            self.log_depth,
            self.design.covariates(self.obs),
            self.design.batch_codes(self.obs),
        )

    def take(self, cells: np.ndarray) -> "Cells":
        """Some of these cells: positions, which may repeat, or a boolean mask."""
        return replace(
            self,
            obs=self.obs.iloc[np.arange(len(self))[cells]],
            counts=self.counts.take(cells),
            size=self.size[cells],
            posterior=self.posterior.take(cells),
        )

    def of(self, *splits: str) -> "Cells":
        """The cells of some splits."""
        return self.take(np.isin(self.split, splits))

    def in_memory(self) -> "Cells":
        """The same with the counts read, for cells that are looked at again and again."""
        return replace(self, counts=Counts(self.counts[:]))

    def with_counts(self, counts: Counts | sp.csr_matrix, model: VAE, device) -> "Cells":
        """The same cells with other counts: library sizes follow, the encoder embeds them anew.

        The library size grows in proportion to the total count, whatever it was computed by.
        """
        counts = Counts.of(counts)
        size = self.size * (counts.sum(1) / self.counts.sum(1))
        cells = replace(self, counts=counts, size=size)
        return replace(cells, posterior=embed(model, cells.data, device))


def join_cells(parts: list[Cells]) -> Cells:
    """Cells of one model, one after the other; their counts are read."""
    posteriors = [part.posterior for part in parts]
    return replace(
        parts[0],
        obs=pd.concat([part.obs for part in parts]),
        counts=Counts(sp.vstack([part.counts[:] for part in parts], format="csr")),
        size=np.concatenate([part.size for part in parts]),
        posterior=Embedding(
            *(
                np.concatenate([getattr(posterior, name) for posterior in posteriors])
                for name in Embedding.__dataclass_fields__
            )
        ),
    )


def some_of(cell_ids: pd.Index, at_most: int) -> np.ndarray:
    """Positions of at most so many cells, chosen by their names and not by their order."""
    names = cell_ids.astype(str)
    number = np.array([zlib.crc32(name.encode()) for name in names], dtype=np.int64)
    return np.sort(np.lexsort((names, number))[:at_most])


def read_cells(
    counts: str,
    library_size: str,
    latent: str,
    description: dict,
    memory: float,
    fold: int | None = None,
    held: np.ndarray | None = None,
) -> Cells:
    """All cells in the order of counts.h5ad; counts of more than ``memory`` bytes stay there.

    ``description``: the model's, with its genes and its design; ``fold`` and ``held`` (cell_id):
    cells that it has not seen. Raises InputError where the files are not of one run.
    """
    return cells_of(*read_counts(counts, library_size, memory), latent, description, fold, held)


def read_counts(counts: str, library_size: str, memory: float) -> tuple[CountFile, np.ndarray]:
    """All cells with their counts, and their library sizes (cells,)."""
    file = CountFile.open(counts, memory, without=INPUT_NAMES)
    size = read_library_size(library_size, file.obs.index)["library_size"].to_numpy()
    return file, size


def cells_of(
    file: CountFile,
    size: np.ndarray,
    latent: str,
    description: dict,
    fold: int | None = None,
    held: np.ndarray | None = None,
) -> Cells:
    """As :func:`read_cells`, of counts that are read already and may serve other fits too."""
    table = pd.read_parquet(latent)
    in_model = file.var.index.get_indexer(description["genes"])
    if (in_model < 0).any() or not np.array_equal(table["cell_id"], file.obs.index):
        raise InputError(
            f"{latent}: model, latent and counts are not of one run; delete the folders train, "
            "prune and embed and run the same command"
        )
    return Cells(
        obs=hold_out(file.obs, fold, held),
        counts=file.counts,
        size=size,
        posterior=embedding_of(table),
        genes=file.var.index,
        in_model=in_model,
        design=Design(**description["design"]),
    )


def read_fits(files, folds: list[int | None], memory: float) -> list[tuple[VAE, Cells]]:
    """Each scoring model with all cells, those that it scores as its query."""
    fits, counts = [], read_counts(files.counts, files.library_size, memory)
    paths = zip(files.weights, files.descriptions, files.latents, folds, strict=True)
    for weights, description, latent, fold in paths:
        model, content = load_model(weights, description)
        fits.append((model, cells_of(*counts, latent, content, fold)))
    return fits
