"""Counts in h5ad files, read and written block by block: memory does not follow their number."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, write_elem
from scipy import sparse

from job import write_atomically
from omics_vae.counts import Counts

# Entries of a chunk in the file, 256 kB: a block of a few hundred cells lies in one or two.
CHUNK = 2**16
DEFAULT_MEM_MB = 4000  # of a job, where no profile says
GZIP = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
PARTS = ("layers", "obsm", "obsp", "uns", "varm", "varp")


def counts_memory(snakemake) -> float:
    """Bytes of counts that a job may hold: config ``memory``, or a quarter of the job's own."""
    gigabytes = snakemake.config["memory"]
    if gigabytes == "auto":
        return 0.25e6 * float(snakemake.resources.get("mem_mb", DEFAULT_MEM_MB))
    return 1e9 * gigabytes


@dataclass(frozen=True)
class CountFile:
    """Cells with their counts, as an h5ad file of the pipeline holds them."""

    counts: Counts
    obs: pd.DataFrame
    var: pd.DataFrame

    @classmethod
    def open(cls, path: str | Path, memory: float = 0.0) -> "CountFile":
        """Counts stay in the file unless they take at most ``memory`` bytes."""
        with h5py.File(path, "r") as file:
            obs, var = (read_elem(file[part]) for part in ("obs", "var"))
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
        with h5py.File(partial, "w") as file:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            for name, table in ({part: {} for part in PARTS} | tables).items():
                # Scalars, as uns may hold, cannot be compressed.
                write_elem(file, name, table, dataset_kwargs={} if name == "uns" else how)
            for name, blocks in matrices.items():
                _write_rows(file.create_group(name), blocks, len(tables["var"]), how)

    write_atomically(path, write)


def _write_rows(group: h5py.Group, blocks, n_genes: int, how: dict) -> None:
    parts, indptr = {}, [np.zeros(1, dtype=np.int64)]
    for block in blocks:
        block.sort_indices()  # a choice of genes may have put them in another order
        start = int(indptr[-1][-1])
        for name in ("data", "indices"):
            values = getattr(block, name)
            if name not in parts:
                growing = {"maxshape": (None,), "chunks": (CHUNK,), **how}
                parts[name] = group.create_dataset(name, (0,), values.dtype, **growing)
            parts[name].resize((start + len(values),))
            parts[name][start:] = values
        indptr.append(start + block.indptr[1:].astype(np.int64))
    indptr = np.concatenate(indptr)
    group.create_dataset("indptr", data=indptr, **how)
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array([len(indptr) - 1, n_genes], dtype=np.int64)
