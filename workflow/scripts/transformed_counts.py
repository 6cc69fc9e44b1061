"""What was done to counts that are counts no more, told from the values themselves."""

import numpy as np
from scipy import sparse

UNKNOWN = "normalised or log-transformed data"
# The inverse of each logarithm that single-cell tools take.
LOGARITHMS = {
    "": lambda x: x,
    "log1p of ": np.expm1,
    "log2(x + 1) of ": lambda x: np.exp2(x) - 1,
    "log10(x + 1) of ": lambda x: 10.0**x - 1,
}
# So many cells must agree, for by chance a few do.
MIN_CELLS = 10
MOST_CELLS = 200
CLOSE = 1e-3  # relative; float32 logarithms lose some digits


def what_was_done(X: sparse.csr_matrix) -> str:
    """In words what the cells (rows) that hold fractions show.

    A logarithm is found by its inverse: under the right one each cell's values are whole, or add up
    to the same total, or are whole multiples of the cell's smallest value (a count of one). Without
    a pattern in at least ten cells it is UNKNOWN.
    """
    X = sparse.csr_matrix(X)[:MOST_CELLS].astype(np.float64)
    is_odd = sparse.csr_matrix((X.data % 1 != 0, X.indices, X.indptr), X.shape).sum(axis=1)
    X = X[(np.asarray(is_odd).ravel() > 0) & (np.diff(X.indptr) > 1)]
    if X.shape[0] < MIN_CELLS:
        return UNKNOWN
    if (X.data < 0).any():
        return "scaled data (z-scores)" if (X.data < 0).mean() > 0.1 else UNKNOWN
    for logarithm, inverse in LOGARITHMS.items():
        with np.errstate(over="ignore", invalid="ignore"):
            y = X.copy()
            y.data = inverse(X.data)
            totals = np.asarray(y.sum(axis=1)).ravel()
        if not np.isfinite(totals).all() or (y.data > 1e9).any():
            continue
        if logarithm and _whole(y.data):
            return f"{logarithm}the raw counts"
        total = float(np.median(totals))
        if np.ptp(totals) < CLOSE * total:
            # A sum of 1 over the cells' parts is no depth.
            unit = {1e6: "counts per million", 1.0: "shares of a cell"}.get(_rounded(total))
            return logarithm + (unit or f"counts normalised to {_rounded(total):,.10g} a cell")
        smallest = np.minimum.reduceat(y.data, y.indptr[:-1])
        if _whole(y.data / np.repeat(smallest, np.diff(y.indptr))):
            return f"{logarithm}counts scaled by a factor a cell"
    return UNKNOWN


def _whole(values: np.ndarray) -> bool:
    """Whether values that are small enough to tell are whole, but for rounding, and not all one."""
    small = values[values < 1 / (4 * CLOSE)]
    off = np.abs(small - np.round(small))
    return len(np.unique(np.round(small))) > 1 and bool((off < 10 * CLOSE).mean() > 0.999)


def _rounded(total: float) -> float:
    return float(f"{total:.3g}")
