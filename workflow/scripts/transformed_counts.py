"""What was done to counts that are counts no more, told from the values themselves."""

import numpy as np
from scipy import sparse

UNKNOWN = "normalised or log-transformed data"
SCALED = "counts scaled by a factor a cell"
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
# Of cells that show gaps between their values. Real counts: at most 0.035, of the 50 genes with the
# most; 0 of whole cells (540 sets of 200), thinned to one depth, summed to bulk, and of reads 0.02.
# Rounded to 10,000 a cell: 0.78 to 1 at a median depth up to 3,600; deeper than 4,000 hardly any.
MIN_SHARE = 0.2
MILLION = 1e6


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
            return f"{logarithm}{SCALED}"
    return UNKNOWN


def what_was_rounded(X: sparse.csr_matrix) -> str:
    """In words what counts (canonical, without zeros) were made of by rounding; "" for counts.

    Counts a million add up to nearly, not quite, a million. And where a cell was scaled up, its
    values are rounded multiples of the smallest, once a count of one: beyond that there is none
    below its double. Cells that were scaled by less than 2.5 do not show it; cells thinned to one
    depth, whose totals are equal and which hold ones, are counts.
    """
    X = X[:MOST_CELLS].astype(np.float64)
    X = X[np.diff(X.indptr) > 1]
    if X.shape[0] < MIN_CELLS:
        return ""
    totals = np.asarray(X.sum(axis=1)).ravel()
    total, spread = float(np.median(totals)), float(np.ptp(totals))
    is_million = abs(total - MILLION) < 0.01 * MILLION and spread < 0.02 * MILLION
    if is_million and (totals == total).mean() < 0.5:
        return "counts per million"
    has_gaps = _with_gaps(X)
    if has_gaps.sum() < MIN_CELLS or has_gaps.mean() < MIN_SHARE:
        return ""
    is_total = spread < 0.2 * total
    return f"counts normalised to some {float(f'{total:.2g}'):,.10g} a cell" if is_total else SCALED


def _with_gaps(X: sparse.csr_matrix) -> np.ndarray:
    """Which cells have their smallest value (3 or more) several times, its double, none between."""
    starts, n_values = X.indptr[:-1], np.diff(X.indptr)
    smallest = np.minimum.reduceat(X.data, starts)
    low = np.repeat(smallest, n_values)

    def number(is_such: np.ndarray) -> np.ndarray:
        return np.add.reduceat(is_such.astype(int), starts)

    n_low, n_double = number(X.data == low), number(np.abs(X.data - 2 * low) <= 1)
    n_between = number((X.data > low) & (X.data < 2 * low - 1))
    return (smallest >= 3) & (n_low > 1) & (n_double > 0) & (n_between == 0)


def _whole(values: np.ndarray) -> bool:
    """Whether values that are small enough to tell are whole, but for rounding, and not all one."""
    small = values[values < 1 / (4 * CLOSE)]
    off = np.abs(small - np.round(small))
    return len(np.unique(np.round(small))) > 1 and bool((off < 10 * CLOSE).mean() > 0.999)


def _rounded(total: float) -> float:
    return float(f"{total:.3g}")
