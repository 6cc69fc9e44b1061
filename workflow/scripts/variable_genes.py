"""How much more a gene varies than its mean lets expect, from blocks of cells."""

import numpy as np
from scipy import sparse
from skmisc.loess import loess

from join_samples import JoinedCounts

# Seurat's span first. Sparse or few data have so few distinct mean counts that a local quadratic is
# singular; a wider window then holds more of them.
LOESS_SPANS = (0.3, 0.5, 0.7, 1.0)
# The loess library crashes on fewer than four points, and a trend through fewer than these is none.
MIN_LOESS_GENES = 20
# Sums held at once, of groups times genes (8 bytes each); of more groups, some are done at a time.
MOST_SUMS = 2**24


def variability(counts: JoinedCounts, groups: np.ndarray) -> dict[str, tuple[np.ndarray, str]]:
    """The score of each gene in each group of cells, and what gave it.

    Seurat v3: the variance of counts standardised by the loess trend of log variance on log mean,
    clipped at sqrt(cells) (Stuart et al. 2019, doi:10.1016/j.cell.2019.05.031); scanpy's numbers,
    without holding the counts. Where the trend cannot be fitted with any span: the variance of
    analytic Pearson residuals, which need no fit (Lause et al. 2021,
    doi:10.1186/s13059-021-02451-7).

    Parameters
    ----------
    groups: the group of each cell; cells of group "" take no part.

    Returns
    -------
    For each group, in the order of their names: score (genes,), higher is more variable; method.
    """
    names = sorted(set(groups) - {""})
    at_once = max(1, MOST_SUMS // counts.shape[1])
    found = {}
    for start in range(0, len(names), at_once):
        found |= _variability(counts, groups, names[start : start + at_once])
    return found


def _variability(counts: JoinedCounts, groups: np.ndarray, names: list[str]) -> dict:
    code = np.full(len(groups), -1)
    for k, name in enumerate(names):
        code[groups == name] = k
    n = np.bincount(code[code >= 0], minlength=len(names))[:, None]
    total, square = _sums(counts, code, len(names))
    mean = total / n
    variance = (square / n - mean**2) * (n / np.maximum(n - 1, 1))
    trends = [_trend(*of_group) for of_group in zip(mean, variance, strict=True)]
    sd = np.array([np.ones_like(mean[0]) if trend is None else trend[0] for trend in trends])
    clipped, clipped_square = _sums(counts, code, len(names), sd * np.sqrt(n) + mean)
    score = (n * mean**2 + clipped_square - 2 * clipped * mean) / ((n - 1) * sd**2)
    return {
        name: (score[k], f"seurat_v3, span {trend[1]}")
        if (trend := trends[k]) is not None
        else (_pearson(counts, code == k), "Pearson residuals")
        for k, name in enumerate(names)
    }


def _sums(
    counts: JoinedCounts, code: np.ndarray, n_groups: int, limit: np.ndarray | None = None
) -> np.ndarray:
    """Sums over the cells of each group of the counts and of their squares (2, groups, genes).

    ``limit`` (groups, genes): larger counts count as this much.
    """
    sums = np.zeros((2, n_groups, counts.shape[1]))
    for rows, block in counts.blocks():
        of_block = code[rows]
        for k in np.unique(of_block[of_block >= 0]):
            x = block[of_block == k] if (of_block != k).any() else block
            values = x.data.astype(np.float64)
            if limit is not None:
                values = np.minimum(values, limit[k][x.indices])
            for power in (0, 1):
                sums[power, k] += np.bincount(
                    x.indices, values if power == 0 else values**2, counts.shape[1]
                )
    return sums


def _trend(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The SD that the trend expects of each gene, and its span; None where none can be fitted."""
    varies = variance > 0
    if varies.sum() < MIN_LOESS_GENES:
        return None
    x, y = np.log10(mean[varies]), np.log10(variance[varies])
    for span in LOESS_SPANS:
        try:
            fit = loess(x, y, span=span, degree=2)
            fit.fit()
        except ValueError:  # "near singularities", "svddc failed", "reciprocal condition number"
            continue
        log_variance = np.zeros_like(mean)
        log_variance[varies] = fit.outputs.fitted_values
        sd = np.sqrt(10**log_variance)
        if np.isfinite(sd).all():
            return sd, span
    return None


def _pearson(counts: JoinedCounts, cells: np.ndarray) -> np.ndarray:
    """Variance of the analytic Pearson residuals of each gene over some cells (genes,)."""
    # Only here: it takes seconds to import, and hardly any data come here.
    import anndata
    import scanpy as sc

    x = [block[cells[rows]] for rows, block in counts.blocks()]
    adata = anndata.AnnData(sparse.vstack(x, format="csr"))
    table = sc.experimental.pp.highly_variable_genes(
        adata, flavor="pearson_residuals", n_top_genes=adata.n_vars, inplace=False
    )
    return np.nan_to_num(table["residual_variances"].to_numpy())
