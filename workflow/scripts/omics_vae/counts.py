"""Rows of a count matrix, in memory or in its file. No torch: most scripts need none."""

from collections.abc import Iterator

import h5py
import numpy as np
import scipy.sparse as sp

BYTES_AN_ENTRY = 8  # int32 count and int32 gene
# Rows read at once where all of a matrix is passed through.
BLOCK_ROWS = 4096
# Training cells come in buffers of so many blocks of neighbouring cells, on average at most so many
# a block (data.ShuffledBatches).
BUFFER_BLOCKS, BLOCK_CELLS = 64, 256
# Rows between two wanted ones up to which reading on is cheaper than a second read.
READ_ON = 64

Index = slice | np.ndarray


class StoredMatrix:
    """A CSR matrix (cells, genes) in an HDF5 or zarr group; rows are read when asked for.

    ``group`` holds data, indices and indptr. Raises ValueError where they do not fit the shape.
    """

    def __init__(self, group, shape: tuple[int, int]):
        self.shape = tuple(int(n) for n in shape)
        self._indices, self._data = group["indices"], group["data"]
        self._indptr = np.asarray(group["indptr"][:]).astype(np.int64)
        entries = {int(self._indptr[-1]), *(int(a.shape[0]) for a in (self._indices, self._data))}
        if len(self._indptr) != self.shape[0] + 1 or self._indptr[0] != 0 or len(entries) > 1:
            raise ValueError("data, indices and indptr do not fit together")
        self.dtype = self._data.dtype

    @classmethod
    def of_file(cls, path: str) -> "StoredMatrix":
        """X of an h5ad file."""
        group = h5py.File(path, "r")["X"]
        return cls(group, group.attrs["shape"])

    @property
    def nnz(self) -> int:
        return int(self._indptr[-1])

    def __getitem__(self, rows: Index) -> sp.csr_matrix:
        """Some rows, positions in any order."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.shape[0])
            if step == 1:
                return self._run(start, max(start, stop))
            rows = np.arange(start, stop, step)
        if len(rows) == 0:
            return self._run(0, 0)
        wanted, place = np.unique(rows, return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > READ_ON) + 1)
        read = [self._run(run[0], run[-1] + 1) for run in runs]
        parts = [
            part if len(run) == part.shape[0] else part[run - run[0]]
            for run, part in zip(runs, read, strict=True)
        ]
        found = parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")
        return found if np.array_equal(wanted, rows) else found[place]

    def _run(self, start: int, stop: int) -> sp.csr_matrix:
        indptr = self._indptr[start : stop + 1]
        part = slice(int(indptr[0]), int(indptr[-1]))
        arrays = self._data[part], self._indices[part], indptr - indptr[0]
        return sp.csr_matrix(arrays, shape=(stop - start, self.shape[1]))


class Counts:
    """Raw counts of some cells in some genes: a view of a CSR matrix in memory or in its file.

    Indexing by cells reads: ``counts[rows]`` is a CSR matrix in memory. ``take`` and ``of_genes``
    read nothing and copy nothing.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix | StoredMatrix,
        rows: np.ndarray | None = None,
        genes: np.ndarray | None = None,
    ):
        self.matrix, self.rows, self.genes = matrix, rows, genes

    @classmethod
    def of(cls, counts) -> "Counts":
        """Any matrix or view as a view."""
        return counts if isinstance(counts, cls) else cls(sp.csr_matrix(counts))

    @classmethod
    def open(cls, path: str, memory: float) -> "Counts":
        """X of an h5ad file: in memory if it takes at most so many bytes, else left where it is."""
        stored = StoredMatrix.of_file(path)
        fits = stored.nnz * BYTES_AN_ENTRY <= memory
        return cls(stored[:] if fits else stored)

    @property
    def shape(self) -> tuple[int, int]:
        n_cells, n_genes = self.matrix.shape
        return (
            n_cells if self.rows is None else len(self.rows),
            n_genes if self.genes is None else len(self.genes),
        )

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def is_plain(self) -> bool:
        """Whether it is rows of a matrix in memory, of all its genes."""
        return self.genes is None and not isinstance(self.matrix, StoredMatrix)

    def take(self, rows: Index) -> "Counts":
        """Some cells: positions, which may repeat, a boolean mask or a slice."""
        own = np.arange(self.matrix.shape[0]) if self.rows is None else self.rows
        return Counts(self.matrix, own[rows], self.genes)

    def of_genes(self, genes: np.ndarray) -> "Counts":
        """Some genes: positions or a boolean mask."""
        own = np.arange(self.matrix.shape[1]) if self.genes is None else self.genes
        return Counts(self.matrix, self.rows, own[genes])

    def __getitem__(self, rows: Index) -> sp.csr_matrix:
        rows = rows if isinstance(rows, slice) else np.arange(len(self))[rows]
        found = self.matrix[rows if self.rows is None else self.rows[rows]]
        return found if self.genes is None else found[:, self.genes]

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[slice, sp.csr_matrix]]:
        """All cells in their order, ``size`` at a time."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self[rows]

    def sum(self, axis: int) -> np.ndarray:
        """Total count of each gene (axis 0) or cell (axis 1), float64."""
        sums = [np.asarray(x.sum(axis), dtype=np.float64).ravel() for _, x in self.blocks()]
        if axis == 1:
            return np.concatenate([np.empty(0), *sums])
        return np.sum([np.zeros(self.shape[1]), *sums], axis=0)

    def toarray(self) -> np.ndarray:
        """All of it, dense."""
        return self[:].toarray()
