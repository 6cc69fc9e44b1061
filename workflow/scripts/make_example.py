"""Make the input of the example run: raw counts of 700 blood cells that ship with scanpy.

``scanpy.datasets.pbmc68k_reduced`` (Zheng et al. 2017, doi:10.1038/ncomms14049) keeps in ``raw``,
for 765 genes, log(1 + 10,000 count / total), rounded to three decimals, and in obs the total over
all genes of the cell. So the counts can be had back exactly, and nothing needs to be downloaded.
"""

from importlib.metadata import version

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

from job import InputError, job, write_h5ad

SCALE = 10_000.0
ROUNDING = 0.0005
FLOAT32_ERROR = 2e-6  # of values up to 8, twice
ONLY_IN_QUERY = ("CD19+ B", "CD34+")
REFERENCE_SHARE = 0.7


def recover_counts(log_values: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    r"""Undo the scaling and the logarithm.

    .. math:: y_{ig} = \operatorname{round}_3 \log(1 + 10^4 x_{ig} / n_i)

    Parameters
    ----------
    log_values
        y, cells x genes.
    totals
        n, counts of each cell over all genes, also those not in ``log_values``.

    Returns
    -------
    The counts x, CSR int32.

    Raises
    ------
    InputError
        If a value is not what the formula gives for a whole number, or rounding has left more than
        one whole number possible.
    """
    counts = sparse.csr_matrix(log_values, dtype=np.float64)
    unit = np.repeat(SCALE / totals, np.diff(counts.indptr))  # of one count, before the logarithm
    values = counts.data.copy()
    counts.data = np.round(np.expm1(values) / unit)
    error = np.abs(np.log1p(counts.data * unit) - values)
    step = np.log1p((counts.data + 1) * unit) - np.log1p(counts.data * unit)
    limit = ROUNDING + FLOAT32_ERROR
    if (error > limit).any() or (step < 2 * limit).any():
        raise InputError(
            f"scanpy.datasets.pbmc68k_reduced: scanpy {version('scanpy')} ships other data than "
            "expected, no whole counts can be had back; install the scanpy pinned in requirements"
        )
    return counts.astype(np.int32)


def assign_roles(cell_types: pd.Series, seed: int) -> np.ndarray:
    """Reference and query; the types of ONLY_IN_QUERY are the anomalies that are to be found."""
    rng = np.random.default_rng(seed)
    roles = np.full(len(cell_types), "query", dtype=object)
    for cell_type in sorted(set(cell_types) - set(ONLY_IN_QUERY)):
        cells = rng.permutation(np.flatnonzero(cell_types == cell_type))
        roles[cells[: round(REFERENCE_SHARE * len(cells))]] = "reference"
    return roles


def make_example(seed: int) -> anndata.AnnData:
    """700 cells x 765 genes; obs: cell_type, n_counts (over all genes of the cell), role."""
    shipped = sc.datasets.pbmc68k_reduced()
    totals = shipped.obs["n_counts"].to_numpy(dtype=np.float64)
    cell_types = shipped.obs["bulk_labels"].astype(str)
    obs = pd.DataFrame(
        {
            "cell_type": cell_types.to_numpy(),
            "n_counts": totals.astype(np.int32),
            "role": assign_roles(cell_types, seed),
        },
        index=shipped.obs_names.to_numpy(),
    )
    counts = recover_counts(shipped.raw.X, totals)
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=shipped.raw.var_names))


if __name__ == "__main__":
    with job(snakemake) as log:
        example = make_example(snakemake.params.seed)
        log.info("%d cells, %d genes", *example.shape)
        write_h5ad(example, snakemake.output[0])
