"""A count matrix into minibatches on a device."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from omics_vae.counts import BLOCK_CELLS, BUFFER_BLOCKS, Counts, Index


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

    ``counts`` (cells, genes), a :class:`Counts` or what can be made one; ``log_offset`` (cells,),
    natural log of the library size; ``covariates`` (cells, covariates) float32, none unless given;
    ``batch`` (cells,) int64, 0.
    """

    counts: Counts
    log_offset: np.ndarray
    covariates: np.ndarray | None = None
    batch: np.ndarray | None = None

    def __post_init__(self):
        object.__setattr__(self, "counts", Counts.of(self.counts))
        n_cells = len(self.counts)
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
        return len(self.counts)

    def take(self, cells: Index) -> "CountData":
        """The same data for some cells: positions, a boolean mask or a slice."""
        return CountData(
            self.counts.take(cells),
            self.log_offset[cells],
            self.covariates[cells],
            self.batch[cells],
        )

    def in_memory(self) -> "CountData":
        """The same with the counts read."""
        return replace(self, counts=Counts(self.counts[:]))

    def chunk(self, cells: Index, device: torch.device) -> Batch:
        """Some cells, dense, on the device."""
        counts = self.counts[cells].toarray().astype(np.float32, copy=False)
        offset = self.log_offset[cells].astype(np.float32)
        arrays = (counts, offset, self.covariates[cells], self.batch[cells])
        return Batch(*(torch.from_numpy(array).to(device) for array in arrays))

    def chunks(self, size: int, device: torch.device) -> Iterator[Batch]:
        """All cells in their order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.chunk(slice(start, start + size), device)


class DeviceData:
    """Data in memory, copied to a device once as CSR; minibatches become dense there.

    Between host and device then travel the positions of the cells and not their dense counts.
    """

    def __init__(self, data: CountData, device: torch.device):
        matrix, self.rows, self.device = data.counts.matrix, data.counts.rows, device
        self.n_genes = matrix.shape[1]
        self._lengths = np.diff(matrix.indptr)

        def on_device(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)

        self._starts = on_device(matrix.indptr[:-1], torch.int64)
        self._genes = on_device(matrix.indices, torch.int32)
        self._counts = on_device(matrix.data, torch.float32)
        self._others = [
            on_device(data.log_offset, torch.float32),
            on_device(data.covariates, torch.float32),
            on_device(data.batch, torch.int64),
        ]

    def chunk(self, cells: np.ndarray) -> Batch:
        """As :meth:`CountData.chunk` of these cells (positions)."""
        rows = cells if self.rows is None else self.rows[cells]
        lengths = self._lengths[rows]
        # Where the entries of a cell begin in the batch; the sizes are known on the host, so that
        # the device need not be waited for.
        begin, total = np.cumsum(lengths) - lengths, int(lengths.sum())
        cells, rows, lengths, begin = (
            torch.from_numpy(np.asarray(a, dtype=np.int64)).to(self.device)
            for a in (cells, rows, lengths, begin)
        )

        def spread(values: torch.Tensor) -> torch.Tensor:
            return torch.repeat_interleave(values, lengths, output_size=total)

        entry = torch.arange(total, device=self.device) + spread(self._starts[rows] - begin)
        x = torch.zeros(len(rows), self.n_genes, device=self.device)
        x[spread(torch.arange(len(rows), device=self.device)), self._genes[entry].long()] = (
            self._counts[entry]
        )
        return Batch(x, *(values[cells] for values in self._others))


class ShuffledBatches:
    """The cells of each training step, as a function of the step alone.

    Every epoch is a fresh order drawn from (seed, epoch): blocks of neighbouring cells are dealt at
    random into buffers of some 16,000 cells, and the cells of a buffer shuffled and dealt evenly
    into batches of at most ``batch_size``. Up to 16,384 cells that is a permutation of all; beyond,
    a batch is of 64 places of the data instead of any, which lets a buffer be read from disk by a
    few long reads. The data must then be in random order: sorted by type or sample, their batches
    would follow the order, and cost held-out ELBO (40 types, 1e5 cells: 4.7 nats a cell). Counts in
    memory are dealt in the same way, so that where they lie changes no result. Nothing is
    remembered between steps, so a training resumed at any step sees the batches that it would have
    seen.
    """

    BLOCKS, BLOCK_CELLS = BUFFER_BLOCKS, BLOCK_CELLS

    def __init__(self, data: CountData, batch_size: int, seed: int):
        self.data, self.seed = data, seed
        n_buffers = max(1, -(-len(data) // (self.BLOCKS * self.BLOCK_CELLS)))
        # With one buffer all blocks are in it: as if there were none.
        n_blocks = 1 if n_buffers == 1 else self.BLOCKS * n_buffers
        self._blocks = np.linspace(0, len(data), n_blocks + 1).astype(np.int64)
        in_buffer = n_blocks // n_buffers * int(np.diff(self._blocks).max())
        self.steps_per_buffer = max(1, -(-in_buffer // batch_size))
        self.n_buffers, self.steps_per_epoch = n_buffers, n_buffers * self.steps_per_buffer
        self._epoch, self._orders = -1, []
        self._buffer, self._held = -1, (data, np.empty(0, dtype=np.int64))
        self._upcoming: tuple[int, Future | None] = (-1, None)
        self._reader = ThreadPoolExecutor(max_workers=1)

    def __getitem__(self, step: int) -> tuple[CountData, np.ndarray]:
        """Of step 0, 1, 2, ...: data whose counts are in memory, and positions of cells in it."""
        buffer, position = divmod(step, self.steps_per_buffer)
        if buffer != self._buffer:
            self._buffer, self._held = buffer, self._hold(buffer)
        data, cells = self._held
        return data, cells[position :: self.steps_per_buffer]

    def _hold(self, buffer: int) -> tuple[CountData, np.ndarray]:
        """Data in memory with the cells of a buffer, and their positions in it, shuffled.

        What comes from disk was read while the last buffer was in use.
        """
        cells = self._cells(buffer)
        if self.data.counts.is_plain:
            return self.data, cells
        ordered = np.sort(cells)
        announced, reading = self._upcoming
        data = reading.result() if announced == buffer else self.data.take(ordered).in_memory()
        upcoming = self.data.take(np.sort(self._cells(buffer + 1)))
        self._upcoming = buffer + 1, self._reader.submit(upcoming.in_memory)
        return data, np.searchsorted(ordered, cells)

    def _cells(self, buffer: int) -> np.ndarray:
        """The cells of a buffer, shuffled; buffers are counted through all epochs."""
        epoch, place = divmod(buffer, self.n_buffers)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            n_blocks = len(self._blocks) - 1
            dealt = rng.permutation(n_blocks) if n_blocks > 1 else np.arange(1)
            self._orders = [
                rng.permutation(
                    np.concatenate([np.arange(*self._blocks[b : b + 2]) for b in np.sort(blocks)])
                )
                for blocks in np.split(dealt, self.n_buffers)
            ]
            self._epoch = epoch
        return self._orders[place]
