"""Split real counts into training, validation and test cells, the same for every implementation.

::

    python prepare.py --data FOLDER --out FOLDER [--datasets pbmc3k] [--seeds 1 2 3]

``FOLDER`` of ``--data`` holds ``<dataset>.h5ad`` with raw counts as CSR in ``X``. Everything comes
from (data set, seed):

1. a permutation of all cells, labels ignored, is cut into 80 % train, 10 % validation, 10 % test;
2. the 2,000 most variable genes of the *training* cells are selected: scanpy's ``seurat_v3``, the
   variance of counts standardised by a loess of log variance on log mean, large values clipped.
   They stay in the order of the file; a file with fewer genes keeps all of them;
3. cells without a count in these genes are dropped.

Each pair is written to ``<dataset>_seed<seed>.npz``, no pickles inside. For each part of ``train``,
``validation``, ``test``:

============================  ======================  =============================================
``<part>_data``               int32 (non-zeros,)      raw counts, a CSR matrix (cells, genes)
``<part>_indices``            int32 (non-zeros,)      gene of each, ascending within a cell
``<part>_indptr``             int32 (cells + 1,)      where each cell starts
``<part>_cells``              str (cells,)            names of the cells, the rows of the matrix
============================  ======================  =============================================

and once ``genes``, str (genes,), the columns; ``dataset``, str (); ``seed``, int64 (). The order of
the test cells is that of every per-cell result, so results of one split can be compared pairwise.
The library size to condition on is the sum of a row: likelihoods given another one, say that of all
genes, are not comparable. :func:`read_split` reads the file.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp

DATASETS = ["pbmc3k", "kang_ctrl_12k_1287genes"]
PARTS = ("train", "validation", "test")
TRAIN, VALIDATION = 0.8, 0.1  # shares of the cells; the test cells are the others
N_GENES = 2000


@dataclass(frozen=True)
class Split:
    """Counts of each part, CSR (cells, genes), and the names of its cells."""

    counts: dict[str, sp.csr_matrix]
    cells: dict[str, np.ndarray]
    genes: np.ndarray
    dataset: str
    seed: int


def deal(n_cells: int, seed: int) -> dict[str, np.ndarray]:
    """Positions of the cells of each part, in the order of the file."""
    order = np.random.default_rng(seed).permutation(n_cells)
    cuts = [round(n_cells * TRAIN), round(n_cells * (TRAIN + VALIDATION))]
    return {part: np.sort(cells) for part, cells in zip(PARTS, np.split(order, cuts), strict=True)}


def most_variable(counts: sp.csr_matrix, n_genes: int = N_GENES) -> np.ndarray:
    """Positions of the most variable genes, ascending; all of them where there are no more."""
    if counts.shape[1] <= n_genes:
        return np.arange(counts.shape[1])
    found = sc.pp.highly_variable_genes(
        ad.AnnData(counts.astype(np.float64)),
        flavor="seurat_v3",
        n_top_genes=n_genes,
        inplace=False,
    )
    return np.flatnonzero(found["highly_variable"])


def make_split(cells: ad.AnnData, dataset: str, seed: int) -> Split:
    """The split of one data set under one seed."""
    parts = deal(cells.n_obs, seed)
    X = sp.csr_matrix(cells.X)
    genes = most_variable(X[parts["train"]])
    selected = X[:, genes]
    has_counts = np.asarray(selected.sum(1)).ravel() > 0
    kept = {part: rows[has_counts[rows]] for part, rows in parts.items()}
    return Split(
        counts={part: selected[rows] for part, rows in kept.items()},
        cells={part: cells.obs_names[rows].to_numpy(str) for part, rows in kept.items()},
        genes=cells.var_names[genes].to_numpy(str),
        dataset=dataset,
        seed=seed,
    )


def write_split(path: Path, split: Split) -> None:
    """Write the format above."""
    arrays = {"genes": split.genes, "dataset": split.dataset, "seed": split.seed}
    for part, counts in split.counts.items():
        counts.sort_indices()
        for name in ("data", "indices", "indptr"):
            arrays[f"{part}_{name}"] = getattr(counts, name).astype(np.int32, casting="same_kind")
        arrays[f"{part}_cells"] = split.cells[part]
    np.savez_compressed(path, **arrays)


def read_split(path: Path) -> Split:
    """Read what :func:`write_split` wrote; counts are int32."""
    with np.load(path) as stored:
        n_genes = len(stored["genes"])
        counts = {}
        for part in PARTS:
            content = tuple(stored[f"{part}_{name}"] for name in ("data", "indices", "indptr"))
            counts[part] = sp.csr_matrix(content, shape=(len(content[2]) - 1, n_genes))
        cells = {part: stored[f"{part}_cells"] for part in PARTS}
        dataset, seed = str(stored["dataset"]), int(stored["seed"])
        return Split(counts, cells, stored["genes"], dataset, seed)


def main() -> None:
    """Write the split of every data set and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with <dataset>.h5ad")
    parser.add_argument("--out", type=Path, required=True, help="where the .npz files go")
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for dataset in options.datasets:
        cells = ad.read_h5ad(options.data / f"{dataset}.h5ad")
        for seed in options.seeds:
            split = make_split(cells, dataset, seed)
            path = options.out / f"{dataset}_seed{seed}.npz"
            write_split(path, split)
            sizes = ", ".join(f"{split.counts[part].shape[0]} {part}" for part in PARTS)
            print(f"{path.name}: {len(split.genes)} genes; {sizes}", flush=True)


if __name__ == "__main__":
    main()
