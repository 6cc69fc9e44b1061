"""A count matrix into minibatches on a device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch


class Batch(NamedTuple):
    """Some cells on a device."""

    x: torch.Tensor  # (cells, genes) counts, float32
    log_offset: torch.Tensor  # (cells,) natural log of the library size
    covariates: torch.Tensor  # (cells, covariates) what else the decoder is told
    batch: torch.Tensor  # (cells,) int64: which batch's dispersion and library prior


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU when there is one; ``cuda`` without one is an error."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("no CUDA device is visible")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


@dataclass(frozen=True)
class CountData:
    """Raw counts of some cells in the model's genes, with their log library sizes.

    ``counts`` CSR (cells, genes); ``log_offset`` (cells,), natural log of the library size;
    ``covariates`` (cells, covariates) float32, none unless given; ``batch`` (cells,) int64, 0.
    """

    counts: sp.csr_matrix
    log_offset: np.ndarray
    covariates: np.ndarray | None = None
    batch: np.ndarray | None = None

    def __post_init__(self):
        n_cells = self.counts.shape[0]
        if self.covariates is None:
            object.__setattr__(self, "covariates", np.zeros((n_cells, 0), dtype=np.float32))
        if self.batch is None:
            object.__setattr__(self, "batch", np.zeros(n_cells, dtype=np.int64))
        named = {"log_offset": "library sizes", "covariates": "rows of covariates"}
        for name, what in (named | {"batch": "batch codes"}).items():
            if n_cells != len(getattr(self, name)):
                raise ValueError(f"{n_cells} cells of counts but {len(getattr(self, name))} {what}")
        if not np.isfinite(self.log_offset).all():
            raise ValueError("a library size is zero, negative or not a number")

    def __len__(self) -> int:
        return self.counts.shape[0]

    def take(self, cells: np.ndarray) -> "CountData":
        """The same data for some cells: positions or a boolean mask."""
        return CountData(
            self.counts[cells], self.log_offset[cells], self.covariates[cells], self.batch[cells]
        )

    def chunk(self, cells: np.ndarray | slice, device: torch.device) -> Batch:
        """Some cells, dense, on the device."""
        counts = self.counts[cells].toarray().astype(np.float32, copy=False)
        offset = self.log_offset[cells].astype(np.float32)
        arrays = (counts, offset, self.covariates[cells], self.batch[cells])
        return Batch(*(torch.from_numpy(array).to(device) for array in arrays))

    def chunks(self, size: int, device: torch.device) -> Iterator[Batch]:
        """All cells in their order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.chunk(slice(start, start + size), device)


class ShuffledBatches:
    """The cells of each training step, as a function of the step alone.

    Every epoch is a fresh permutation drawn from (seed, epoch), dealt evenly into batches of at
    most ``batch_size``. Nothing is remembered between steps, so a training resumed at any step sees
    the batches that it would have seen.
    """

    def __init__(self, n_cells: int, batch_size: int, seed: int):
        self.n_cells, self.seed = n_cells, seed
        self.steps_per_epoch = max(1, -(-n_cells // batch_size))
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, step: int) -> np.ndarray:
        """Positions of the cells of step 0, 1, 2, ..."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(self.n_cells)
        return self._order[position :: self.steps_per_epoch]
