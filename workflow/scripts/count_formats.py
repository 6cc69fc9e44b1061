"""Raw counts out of every format that a sample table may name.

``open_counts`` is the only function that other scripts call. The readers of single formats return
the matrix (cells x genes, not yet checked), obs (index: cell names) and var (index: gene names).
Only the chosen matrix, obs and var of an AnnData file are touched. CSR and dense matrices in HDF5
and zarr stay in the file and are read in blocks of cells; what is stored by genes (CSC) or as text
(mtx, csv) is held in memory as sparse counts. Nothing is unpickled, and what a file declares is
checked before it is read (``untrusted_files``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem
from scipy import sparse

from cell_ranger import read_10x_h5, read_10x_mtx
from count_checks import (
    CONTROL,
    as_counts,
    check_numbers,
    check_orientation,
    check_shape,
    clean_names,
    reading,
    warn_of_rounding,
)
from dense_formats import BLOCK_VALUES, HEAD_ROWS, TRANSPOSED, Unread, read_loom, read_table
from job import InputError, collected, raise_all
from omics_vae.counts import BLOCK_ROWS, StoredMatrix
from untrusted_files import Room, check_folder, check_there, open_hdf5, size_of

FORMATS = ("10x_h5", "10x_mtx", "h5ad", "zarr", "loom", "csv", "tsv")
FOLDERS = ("10x_mtx", "zarr")
WITH_MATRICES = ("h5ad", "zarr", "loom")
SUFFIXES = {
    ".h5": "10x_h5",
    ".h5ad": "h5ad",
    ".loom": "loom",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "tsv",
}
TABLES = ("csv", "tsv")

# The names under which files keep what Cell Ranger calls id, feature type and genome.
VAR_COLUMNS = {
    "gene_id": ("gene_id", "gene_ids", "ensembl_id", "Accession"),
    "feature_type": ("feature_types",),
    "genome": ("genome",),
}


@dataclass(frozen=True)
class SampleFile:
    """The chosen matrix of a sample's file, with its cells and genes."""

    path: Path
    format: str
    obs: pd.DataFrame  # the columns of the file; index: unique cell names
    var: pd.DataFrame  # gene_id where the file has ids; index: unique gene names
    dropped_features: dict[str, int]  # number of features of each type not kept
    warnings: list[str]
    _matrix: object = field(repr=False)  # (cells, all features); rows by a slice
    _keep: np.ndarray = field(repr=False)  # (all features,) bool
    has_all_cells: bool = True  # False where only the head of a longer table was read

    def blocks(self, size: int | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """All cells in their order, some at a time: CSR int32 counts (cells, genes), checked.

        ``size``: of a block, in cells. Raises InputError in one line that names the file, and cell
        and gene where possible.
        """
        for rows, block in _row_blocks(self._matrix, self.path, size):
            check_numbers(block, str(self.path))
            block = block if self._keep.all() else block[:, self._keep]
            cells = self.obs.index[rows]
            yield rows, as_counts(block, cells, self.var.index, str(self.path), self._mend)

    def check_first_cells(self) -> list[str]:
        """Warnings about the first cells, where they can be read alone; InputError for faults."""
        if isinstance(self._matrix, Unread):
            return []
        _, block = next(self.blocks(HEAD_ROWS))
        return warn_of_rounding(block, self.path)

    def _mend(self) -> str:
        return _whole_number_matrices(self.path, self.format)

    def read(self) -> sparse.csr_matrix:
        """All counts at once."""
        return sparse.vstack([block for _, block in self.blocks()], format="csr")


def open_counts(
    path: str | Path,
    format: str = "",
    matrix: str = "",
    genome: str = "",
    feature_type: str = "Gene Expression",
    head: bool = False,
) -> SampleFile:
    """Open the raw counts of one sample and check all but the values.

    Parameters
    ----------
    path, format, matrix, genome
        As in the sample table; "" where it says nothing.
    feature_type
        Which features are kept where the file tells types.
    head
        Leave out what takes long: of counts by genes (CSC, mtx) only shape and names are read, of a
        table only the first rows.

    Raises
    ------
    InputError
        In lines that name the file.
    """
    path = Path(path)
    format = _check_format(path, format)
    if matrix and format not in WITH_MATRICES and (format not in TABLES or matrix != TRANSPOSED):
        unless = f" or, if its rows are genes, write {TRANSPOSED} there" * (format in TABLES)
        raise InputError(
            f"{path}: a {format} file has one matrix; leave the column matrix empty{unless}"
        )
    with reading(path):
        X, obs, var = _read(path, format, matrix, genome, head)
        # Before anything is made in this shape.
        check_shape(X.shape, len(obs), len(var), path)
        if sparse.issparse(X) and X.format != "csr":
            X.check_format(full_check=True) if X.format == "csc" else None
            X = X.tocsr()
    var = _known_columns(var)
    keep, dropped = _select_features(var, feature_type, genome, path)
    var = var[keep]
    faults: list[str] = []
    with collected(faults):
        cells, cell_warnings = clean_names(obs.index, "cell", path)
    with collected(faults):
        genes, gene_warnings = clean_names(var.index, "gene", path)
    raise_all(faults)
    check_orientation(cells, genes, path, format)
    ids = {"gene_id": _clean(var["gene_id"])} if "gene_id" in var else {}
    var = pd.DataFrame(ids, index=genes)
    warnings = cell_warnings + gene_warnings
    has_all = not (head and format in TABLES and len(cells) == HEAD_ROWS)
    return SampleFile(path, format, obs.set_axis(cells), var, dropped, warnings, X, keep, has_all)


def _clean(ids: pd.Series) -> np.ndarray:
    """Ids as text without control characters."""
    return ids.astype(str).map(lambda text: CONTROL.sub("_", text)).to_numpy(dtype=object)


def tell_format(path: Path) -> str:
    """The format that a path shows, by its suffix, or by what lies in the folder."""
    if path.is_dir():
        is_zarr = any((path / name).exists() for name in (".zgroup", ".zmetadata", "zarr.json"))
        return "zarr" if is_zarr or path.suffix == ".zarr" else "10x_mtx"
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix == ".mtx":
        raise InputError(
            f"{path}: has no names of cells and genes; give the folder that holds it and them"
        )
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path}: the name does not tell the format; set the column format to one of: "
            f"{', '.join(FORMATS)}"
        )
    return SUFFIXES[suffix]


def _check_format(path: Path, format: str) -> str:
    check_there(path)
    format = format or tell_format(path)
    if path.is_dir() != (format in FOLDERS):
        is_a, must_be = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise InputError(
            f"{path}: is a {is_a}, but format {format} is a {must_be}; correct the column path or "
            "format"
        )
    return format


def _read(path: Path, format: str, matrix: str, genome: str, head: bool):
    match format:
        case "10x_h5":
            return read_10x_h5(path, genome)
        case "10x_mtx":
            return read_10x_mtx(path, genome, head)
        case "h5ad" | "zarr":
            return _read_annotated(*_open(path, format), path, matrix, head)
        case "loom":
            return read_loom(path, matrix)
        case _:
            return read_table(path, format, matrix == TRANSPOSED, head)


def _select_features(
    var: pd.DataFrame, feature_type: str, genome: str, path: Path
) -> tuple[np.ndarray, dict[str, int]]:
    """Which features are of the type and genome asked for, and how many of each type are not."""
    keep = np.ones(len(var), dtype=bool)
    dropped = {}
    if "feature_type" in var:
        types = var["feature_type"].astype(str)
        keep &= (types == feature_type).to_numpy()
        if not keep.any():
            raise InputError(
                f"{path}: has no features of type {feature_type!r}; set import.feature_type to one "
                f"of: {', '.join(sorted(set(types)))}"
            )
        dropped = {str(t): int(n) for t, n in types[~keep].value_counts().sort_index().items()}
    if genome:
        if "genome" not in var:
            raise InputError(f"{path}: does not tell genomes; leave the column genome empty")
        genomes = var["genome"].astype(str)
        if genome not in set(genomes):
            raise InputError(
                f"{path}: has no genome {genome!r}; set the column genome to one of: "
                f"{', '.join(sorted(set(genomes)))}"
            )
        other = keep & (genomes != genome).to_numpy()
        keep &= ~other
        for name, n in genomes[other].value_counts().sort_index().items():
            dropped[f"genome {name}"] = int(n)
        if not keep.any():
            raise InputError(
                f"{path}: genome {genome!r} has no features of type {feature_type!r}; correct the "
                "column genome or import.feature_type"
            )
    return keep, dropped


def _known_columns(var: pd.DataFrame) -> pd.DataFrame:
    """Only the columns of VAR_COLUMNS, under their names here."""
    found = {
        column: next((name for name in names if name in var), None)
        for column, names in VAR_COLUMNS.items()
    }
    return pd.DataFrame(
        {column: var[name] for column, name in found.items() if name is not None}, index=var.index
    )


def _open(path: Path, format: str) -> tuple[h5py.File | zarr.Group, Room]:
    """The store, which stays open as long as something of it is in use."""
    if format == "zarr":
        check_folder(path)
        return zarr.open_group(path, mode="r"), Room(path, size_of(path))
    return open_hdf5(path)


def _read_annotated(
    store: h5py.File | zarr.Group, room: Room, path: Path, matrix: str, head: bool = False
):
    """Read the chosen matrix, obs and var of an AnnData file or store."""
    for part in ("obs", "var"):
        if not hasattr(store.get(part), "attrs"):
            raise InputError(
                f"{path}: has no {part}, so it is not an AnnData file; set the column format"
            )
    matrices = _matrices(store, room, path, head)
    name = matrix or "X"
    if name not in matrices:
        what = {"X": "no X", "raw": "no raw"}.get(name, f"no layer {name!r}")
        raise InputError(
            f"{path}: has {what}; set the column matrix to one of: {', '.join(matrices) or '-'}"
        )
    return matrices[name]()


def _matrices(
    store: h5py.File | zarr.Group, room: Room, path: Path, head: bool = False
) -> dict[str, Callable]:
    """For X, raw and every layer that is there, by its name, what reads it with its obs and var."""
    if "encoding-type" not in store["obs"].attrs:  # anndata before 0.7 wrote another layout
        room.hold(store)
        old = anndata.read_h5ad(path)
        found = {"X": lambda: (old.X, old.obs, old.var)}
        if old.raw is not None:
            found["raw"] = lambda: (old.raw.X, old.obs, old.raw.var)
        return found
    # The layers last, but X and raw keep their meaning should a layer bear the name.
    places = {name: (f"layers/{name}", "var") for name in _layers(store)}
    places = {"X": ("X", "var"), "raw": ("raw/X", "raw/var")} | {
        name: place for name, place in places.items() if name not in ("X", "raw")
    }
    return {
        name: lambda at=at, var=var: (
            _matrix(store[at], room, head),
            _table(store["obs"], room),
            _table(store[var], room),
        )
        for name, (at, var) in places.items()
        if at in store and store[at].attrs.get("encoding-type") != "null"
    }


def _layers(store: h5py.File | zarr.Group) -> list[str]:
    layers = store.get("layers", {})
    return [] if hasattr(layers, "shape") else sorted(layers)


def _table(stored, room: Room) -> pd.DataFrame:
    room.hold(stored)
    table = read_elem(stored)
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"{room.path}: {stored.name} is not a table; write the file anew")
    return table


def _matrix(stored, room: Room, head: bool):
    """A matrix of the store: left there where blocks of cells can be read, else in memory."""
    encoding = stored.attrs.get("encoding-type")
    if encoding == "csr_matrix":
        room.hold(stored["indptr"])
        room.pass_through(stored["data"], stored["indices"])
        return StoredMatrix(stored, stored.attrs["shape"])
    if encoding == "csc_matrix" and head:
        return Unread(tuple(int(n) for n in stored.attrs["shape"]))
    if encoding == "array" and stored.ndim == 2:
        room.pass_through(stored)
        return stored
    room.hold(stored)
    return read_elem(stored)


def _row_blocks(
    X, path: Path, size: int | None = None
) -> Iterator[tuple[slice, np.ndarray | sparse.csr_matrix]]:
    """The rows of a matrix in memory or in the store ``path``, some at a time."""
    is_dense = not (sparse.issparse(X) or isinstance(X, StoredMatrix))
    most = max(1, BLOCK_VALUES // max(1, X.shape[1])) if is_dense else BLOCK_ROWS
    size = min(size or most, most)
    for start in range(0, X.shape[0], size):
        rows = slice(start, min(start + size, X.shape[0]))
        with reading(path):
            block = X[rows]
            if block.dtype == np.float16:  # which scipy does not know
                block = block.astype(np.float32)
            if sparse.issparse(block):
                # Indices that point outside the matrix would crash the interpreter later on.
                block.check_format(full_check=True)
        yield rows, block


def _are_counts(block) -> bool:
    """Whether all values are whole numbers that are not negative."""
    values = block.data if sparse.issparse(block) else np.asarray(block)
    is_number = values.dtype.kind in "iuf"
    return is_number and bool((values >= 0).all() and (values % 1 == 0).all())


def _whole_number_matrices(path: Path, format: str) -> str:
    """What to do about fractions: the matrices of the file that hold whole numbers, if any."""
    names = []
    if format in ("h5ad", "zarr"):
        with reading(path):
            for name, read in _matrices(*_open(path, format), path).items():
                if all(_are_counts(block) for _, block in _row_blocks(read()[0], path)):
                    names.append(name)
    if not names:
        return "give the raw counts"
    return f"set the column matrix to what holds whole numbers: {' or '.join(names)}"
