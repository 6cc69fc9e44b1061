"""What can be wrong with a file of counts, in one line each, and the clean matrix if nothing is.

Every function raises :class:`job.InputError`: where: what is wrong; what to do.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique
from scipy import sparse

from job import InputError
from transformed_counts import what_was_done, what_was_rounded

# Control characters, line ends, what turns the direction of writing, and what is no character.
CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
LONGEST_NAME = 1000
LARGEST_COUNT = np.iinfo(np.int32).max

# A cell with the name of a gene, or a gene with that of a cell: the table has genes as rows.
GENES_IN_EVERY_CELL = {"ACTB", "GAPDH", "MALAT1", "Actb", "Gapdh", "Malat1"}
GENE_ID = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?")
BARCODE = re.compile(r"(\w+[_-])?[ACGT]{12,}(-\d+)?")  # with the sample in front, or not


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises on ``path`` into one line that names the file.

    On damaged files h5py, zarr, anndata, scipy and pandas raise almost anything, some of it of
    private classes, so everything is caught here; wrap nothing but reading.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename or path}: there is no such file; correct the path in the sample table"
        ) from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read; give yourself read permission") from error
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{path}: cannot be read ({what}); it is damaged, cut short or of another format: "
            "fetch it again, or set the column format"
        ) from error


def clean_names(names: pd.Index, what: str, path: Path) -> tuple[pd.Index, list[str]]:
    """Names as unique strings (``-1``, ``-2`` after the later ones) and warnings about changes.

    ``what`` is "cell" or "gene". Raises InputError for a missing or empty name.
    """
    empty = np.flatnonzero(names.isna() | (names.astype(str).str.strip() == ""))
    if len(empty):
        raise InputError(
            f"{path}: {what} number {empty[0] + 1} has no name ({len(empty)} without one in all); "
            f"give every {what} a name"
        )
    names = pd.Index(names.astype(str).to_numpy(dtype=object), dtype=object)
    for number, name in enumerate(names, start=1):
        if len(name) > LONGEST_NAME or CONTROL.search(name):
            raise InputError(
                f"{path}: {what} number {number} is called {name[:40]!r}: a name may have "
                f"{LONGEST_NAME} characters, and none that controls a terminal or is no text; "
                "rename it"
            )
    n_duplicates = int(names.duplicated().sum())
    if n_duplicates == 0:
        return names, []
    first = names[names.duplicated()][0]
    warning = (
        f"{path}: {n_duplicates} {what} names occur more than once (such as {first!r}) and got a "
        f"suffix (-1, -2, ...); rename them if they should match other samples"
    )
    return make_index_unique(names), [warning]


def check_shape(shape: tuple[int, int], n_cells: int, n_genes: int, path: Path) -> None:
    """Raise InputError unless names fit the matrix and it has at least one cell and one gene."""
    for n_rows, n_names, what in ((shape[0], n_cells, "cell"), (shape[1], n_genes, "gene")):
        if n_rows != n_names:
            raise InputError(
                f"{path}: {n_names} {what} names for a matrix of {n_rows} {what}s; the file or "
                "folder mixes two data sets or is cut short: export it again"
            )
        if n_rows == 0:
            raise InputError(f"{path}: has no {what}s; check how the file was made")


def check_numbers(X, where: str) -> None:
    """Raise InputError unless it is a matrix of numbers."""
    if not (sparse.issparse(X) or isinstance(X, np.ndarray)) or X.dtype.kind not in "biuf":
        kind = getattr(X, "dtype", type(X).__name__)
        raise InputError(f"{where}: the matrix holds {kind}, not numbers; give the raw counts")


def as_counts(
    X,
    cells: pd.Index,
    genes: pd.Index,
    where: str,
    mend_fractions: Callable[[], str] = lambda: "give the raw counts",
) -> sparse.csr_matrix:
    """The matrix (cells x genes), or a block of its cells, as canonical CSR int32 without zeros.

    Dense, CSR, CSC and COO of any integer or float type are fine as long as every value is a whole
    number between 0 and 2^31 - 1; else InputError names the first cell and gene that is not.
    ``mend_fractions`` says what to do about fractions; it is called only if there are any.
    """
    check_numbers(X, where)
    X = sparse.csr_matrix(X)
    _check_values(X, cells, genes, where, mend_fractions)
    if not X.has_canonical_format:
        X = X.astype(np.int64)  # the sum of two entries may not fit the type of one
        X.sum_duplicates()
        _check_values(X, cells, genes, where, mend_fractions)
    counts = sparse.csr_matrix((X.data.astype(np.int32), X.indices, X.indptr), shape=X.shape)
    counts.eliminate_zeros()
    return counts


def warn_of_rounding(counts: sparse.csr_matrix, path: Path) -> list[str]:
    """A line if the first cells of a file hold what was normalised and rounded."""
    found = what_was_rounded(counts)
    if not found:
        return []
    return [
        f"{path}: the values are whole, but look like {found}, rounded; these do not scatter as "
        "counts do, so p-values would be wrong: give the raw counts"
    ]


def _check_values(X, cells, genes, where, mend_fractions) -> None:
    """Raise InputError for the first value that no count can be."""
    values = X.data
    if values.dtype.kind == "f":
        _raise_at(~np.isfinite(values), X, cells, genes, where, "is {}", "fill or drop it")
    if values.dtype.kind == "f" and (fractions := values != np.floor(values)).any():
        problem = f"is {{}}: not a whole number; this looks like {what_was_done(X)}"
        _raise_at(fractions, X, cells, genes, where, problem, mend_fractions)
    if values.dtype.kind in "if":
        problem = "is {}, but a count cannot be negative"
        mend = "give the raw counts, not scaled or corrected values"
        _raise_at(values < 0, X, cells, genes, where, problem, mend)
    problem = f"is {{}}, more than the largest possible count {LARGEST_COUNT}"
    mend = "check that the matrix holds counts"
    _raise_at(values > LARGEST_COUNT, X, cells, genes, where, problem, mend)


def _raise_at(bad, X, cells, genes, where, problem, mend) -> None:
    if not bad.any():
        return
    first = int(np.argmax(bad))
    cell = cells[np.searchsorted(X.indptr, first, side="right") - 1]
    gene = genes[X.indices[first]]
    raise InputError(
        f"{where}: cell {cell!r}, gene {gene!r} {problem.format(X.data[first])} "
        f"({int(bad.sum())} such values); {mend() if callable(mend) else mend}"
    )


def check_orientation(cells: pd.Index, genes: pd.Index, path: Path, format: str) -> None:
    """Raise InputError if the names say that rows are genes and columns cells."""
    named = sorted(GENES_IN_EVERY_CELL.intersection(cells))
    if named and not GENES_IN_EVERY_CELL.intersection(genes):
        found = f"a row is called {named[0]!r}"
    elif _share(GENE_ID, cells) > 0.5 > _share(GENE_ID, genes):
        found = f"its first row is called {cells[0]!r}"
    elif _share(BARCODE, genes) > 0.5 > _share(BARCODE, cells):
        found = f"its first column is called {genes[0]!r}"
    else:
        return
    mend = "write transposed into the column matrix of the sample table"
    raise InputError(
        f"{path}: its rows are genes and its columns cells ({found}); "
        + (mend if format in ("csv", "tsv") else "transpose it and name cells and genes anew")
    )


def _share(pattern: re.Pattern, names: pd.Index) -> float:
    """Of the first hundred names those that fit."""
    return float(np.mean([bool(pattern.fullmatch(name)) for name in names[:100]]))
