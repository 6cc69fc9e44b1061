"""Counts in h5ad files, read and written block by block: memory does not follow their number."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, write_elem
from scipy import sparse

from job import write_atomically
from new_hdf5 import NewFile, new_hdf5
from omics_vae.counts import Counts

# Entries of a chunk in the file, 256 kB: a block of a few hundred cells lies in one or two.
CHUNK = 2**16
# The column of model_counts.h5ad that says where in counts.h5ad a cell is.
ROW = "row_in_counts"
BUCKET_ROWS = 2**15  # put in order at once; at 10 % of 2,000 genes 50 MB
GZIP = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
PARTS = ("layers", "obsm", "obsp", "uns", "varm", "varp")


def counts_memory(snakemake) -> float:
    """Bytes of counts that a job may hold: config ``memory``, or a quarter of the job's own."""
    gigabytes = snakemake.config["memory"]
    if gigabytes == "auto":
        return 0.25e6 * snakemake.resources.mem_mb
    return 1e9 * gigabytes


@dataclass(frozen=True)
class CountFile:
    """Cells with their counts, as an h5ad file of the pipeline holds them."""

    counts: Counts
    obs: pd.DataFrame
    var: pd.DataFrame

    @classmethod
    def open(
        cls, path: str | Path, memory: float = 0.0, without: tuple[str, ...] = ()
    ) -> "CountFile":
        """Counts stay in the file unless they take at most ``memory`` bytes.

        ``without``: columns of obs that are not read.
        """
        with h5py.File(path, "r") as file:
            obs, var = (_read_table(file[part], without) for part in ("obs", "var"))
        return cls(Counts.open(str(path), memory), obs, var)

    def take(self, cells: np.ndarray) -> "CountFile":
        """Some cells, a boolean mask or positions; categories that none of them has are gone."""
        obs = self.obs.iloc[np.arange(len(self.obs))[cells]].copy()
        for name in obs.select_dtypes("category"):
            obs[name] = obs[name].cat.remove_unused_categories()
        return CountFile(self.counts.take(cells), obs, self.var)

    def write(self, path: str | Path, compressed: bool = True) -> None:
        """Write it by :func:`write_h5ad`."""
        blocks = (block for _, block in self.counts.blocks())
        write_h5ad(path, {"X": blocks}, {"obs": self.obs, "var": self.var}, compressed)


def _read_table(group: h5py.Group, without: tuple[str, ...]) -> pd.DataFrame:
    names = [name for name in group.attrs["column-order"] if name not in without]
    index = group.attrs["_index"]
    return pd.DataFrame(
        {name: read_elem(group[name]) for name in names},
        index=pd.Index(read_elem(group[index]), name=None if index == "_index" else index),
    )


def _with_categories(table: pd.DataFrame) -> pd.DataFrame:
    """Text that repeats itself as categories, which take a fraction of the memory."""
    table = table.copy(deep=False)
    for name in table.select_dtypes(object):
        categories = pd.Categorical(table[name])
        if len(categories.categories) < len(table):
            table[name] = categories
    return table


def write_h5ad(
    path: str | Path,
    matrices: dict[str, Iterable[sparse.csr_matrix]],
    tables: dict[str, object],
    compressed: bool = True,
) -> None:
    """Write an AnnData file, put in place at once.

    ``matrices``: blocks of rows (CSR, canonical) of X and of ``layers/<name>``; ``tables``: obs and
    var, and what else there is (obsm, uns). Uncompressed is for what is read over and over in small
    pieces. The same content gives the same bytes.
    """
    how = GZIP if compressed else {}

    def write(partial: Path) -> None:
        with new_hdf5(partial) as file:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            tables_of = {name: _with_categories(tables[name]) for name in ("obs", "var")}
            for name, table in ({part: {} for part in PARTS} | tables | tables_of).items():
                # Scalars, as uns may hold, cannot be compressed.
                write_elem(file, name, table, dataset_kwargs={} if name == "uns" else how)
            for name, blocks in matrices.items():
                _write_rows(file, name, blocks, len(tables["var"]), how)

    write_atomically(path, write)


def _write_rows(file: NewFile, name: str, blocks, n_genes: int, how: dict) -> None:
    group = file.create_group(name)
    parts, indptr, start = {}, [np.zeros(1, dtype=np.int64)], 0
    for block in blocks:
        file.check()
        block.sort_indices()  # a choice of genes may have put them in another order
        for name in ("data", "indices"):
            values = getattr(block, name)
            if name not in parts:
                growing = {"maxshape": (None,), "chunks": (CHUNK,), **how}
                parts[name] = group.create_dataset(name, (0,), values.dtype, **growing)
            parts[name].resize((start + len(values),))
            parts[name][start:] = values
        indptr.append(start + block.indptr[1:].astype(np.int64))
        start += block.nnz
    indptr = np.concatenate(indptr)
    group.create_dataset("indptr", data=indptr, **how)
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array([len(indptr) - 1, n_genes], dtype=np.int64)


def in_order(
    blocks: Iterable[tuple[slice, sparse.csr_matrix]], order: np.ndarray, beside: Path
) -> Iterator[sparse.csr_matrix]:
    """The rows of ``blocks`` (int32) in another ``order`` (positions), without holding them.

    Each row goes to the file of its bucket of BUCKET_ROWS, in a folder ``beside`` a file that is
    removed in the end, and by the next run where a kill left it; then bucket after bucket is read
    and put in order.
    """
    buckets = [order[start : start + BUCKET_ROWS] for start in range(0, len(order), BUCKET_ROWS)]
    bucket_of, length = np.empty((2, len(order)), dtype=np.int64)
    for k, rows in enumerate(buckets):
        bucket_of[rows] = k
    folder = beside.with_name(f".{beside.stem}.order")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        n_genes = 0
        for rows, block in blocks:
            length[rows], n_genes = np.diff(block.indptr), block.shape[1]
            for k in np.unique(bucket_of[rows]):
                part = block[bucket_of[rows] == k]
                for values, path in zip((part.data, part.indices), _files(folder, k), strict=True):
                    with path.open("ab") as file:
                        # tofile would not say that the disk is full.
                        file.write(values.astype(np.int32))
        for k, rows in enumerate(buckets):
            ascending = np.sort(rows)
            indptr = np.concatenate([[0], np.cumsum(length[ascending])])
            arrays = [np.fromfile(path, dtype=np.int32) for path in _files(folder, k)]
            bucket = sparse.csr_matrix((*arrays, indptr), shape=(len(rows), n_genes))
            for path in _files(folder, k):
                path.unlink()
            yield bucket[np.searchsorted(ascending, rows)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path, bucket: int) -> list[Path]:
    return [folder / f"{bucket}.{name}" for name in ("data", "indices")]
