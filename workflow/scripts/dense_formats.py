"""Formats that keep counts as a dense table: loom, csv and tsv, read in blocks of cells.

Loom is read with h5py: the files are plain HDF5, and loompy, its own reader, would bring numba.

Each reader returns the matrix (cells x genes, not yet checked), obs (index: cell names) and var
(index: gene names).
"""

import csv
import io
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from count_checks import check_shape
from job import InputError
from untrusted_files import Room, check_unpacked, open_bytes, open_hdf5

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
LOOM_CELLS = ("CellID", "obs_names")
LOOM_GENES = ("Gene", "var_names")

# Values held at once (8 bytes each).
BLOCK_VALUES = 2**22
# What the column matrix of the sample table says of a table whose rows are genes.
TRANSPOSED = "transposed"
# Rows of a table, and cells of other files, that are looked at before the run starts.
HEAD_ROWS = 200


@dataclass(frozen=True)
class Unread:
    """A matrix of which only the shape was read."""

    shape: tuple[int, int]


class _ByGenes:
    """A dense dataset of (genes, cells) as one of (cells, genes); rows by a slice."""

    def __init__(self, dataset: h5py.Dataset):
        self._dataset, self.shape = dataset, dataset.shape[::-1]

    def __getitem__(self, cells: slice) -> np.ndarray:
        return self._dataset[:, cells].T


def read_loom(path: Path, matrix: str):
    """Open a loom file (genes x cells) with h5py; its counts stay there."""
    file, room = open_hdf5(path)
    parts = {"matrix": h5py.Dataset, "row_attrs": h5py.Group, "col_attrs": h5py.Group}
    if any(not isinstance(file.get(name), kind) for name, kind in parts.items()):
        raise InputError(f"{path}: is not a loom file; set the column format")
    layers = file.get("layers")
    layers = sorted(layers) if isinstance(layers, h5py.Group) else []
    if matrix not in ("", "X", *layers):
        raise InputError(
            f"{path}: has no layer {matrix!r}; set the column matrix to one of: "
            f"{', '.join(['X', *layers])}"
        )
    dataset = file["matrix"] if matrix in ("", "X") else file[f"layers/{matrix}"]
    if dataset.ndim != 2:
        raise InputError(f"{path}: {dataset.name} is no matrix; set the column matrix")
    room.pass_through(dataset)
    obs = _loom_names(file["col_attrs"], LOOM_CELLS, room)
    var = _loom_names(file["row_attrs"], LOOM_GENES, room)
    return _ByGenes(dataset), obs, var


def _loom_names(attributes: h5py.Group, names: tuple[str, ...], room: Room) -> pd.DataFrame:
    """Attributes with one value a row (or column) as a table, indexed by the first of ``names``."""
    room.hold(attributes)
    columns = {
        key: value.asstr()[:] if h5py.check_string_dtype(value.dtype) else value[:]
        for key, value in attributes.items()
        if isinstance(value, h5py.Dataset) and value.ndim == 1 and _is_plain(value.dtype)
    }
    name = next((name for name in names if name in columns), None)
    if name is None:
        raise InputError(
            f"{room.path}: {attributes.name} has none of {', '.join(names)} (it has "
            f"{', '.join(columns) or 'nothing'}); add one with the names"
        )
    index = columns.pop(name)
    return pd.DataFrame(columns, index=index)


def _is_plain(dtype: np.dtype) -> bool:
    """Whether it is numbers, booleans or text, not records or references."""
    return dtype.kind in "biufS" or h5py.check_string_dtype(dtype) is not None


def read_table(path: Path, format: str, is_transposed: bool = False, head: bool = False):
    """Read a table with a row a cell: its name, then its counts; the header names the genes.

    R leaves out the header's field above the cell names; both forms are read, and a csv whose
    fields are parted by semicolons, as spreadsheets of half of Europe write it.

    ``is_transposed``: a row is a gene, a column a cell. ``head``: only the first rows, or of a
    transposed table only the names.
    """
    with open_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        line = text.readline()
        separator = "\t" if format == "tsv" else ";" if ";" in line and "," not in line else ","
        fields = csv.reader(chain([line], text), delimiter=separator)
        header, first = next(fields, []), next(fields, [])
    if len(header) < 2:
        name, other = ("tab", "csv") if format == "tsv" else ("comma", "tsv")
        raise InputError(
            f"{path}: the header has no {name}, so no genes; is the format {other}? set the column "
            "format"
        )
    names_only = head and is_transposed
    columns = header if len(header) == len(first) - 1 else header[1:]
    blocks, rows = [], []
    if path.suffix == ".gz" and (is_transposed or not head):  # all of it is to be parsed
        check_unpacked(path)
    with open_bytes(path) as file:
        for frame in _frames(file, path, separator, len(header), head, names_only):
            rows.extend(frame[0])
            if not names_only:
                check_shape((len(frame), frame.shape[1] - 1), len(frame), len(columns), path)
                values = _numbers(frame.set_index(0).set_axis(columns, axis=1), path)
                blocks.append(sparse.csr_matrix(values))
    rows, columns = pd.DataFrame(index=rows), pd.DataFrame(index=columns)
    if names_only:
        return Unread((len(columns), len(rows))), columns, rows
    X = sparse.vstack(blocks, format="csr")
    return (X.T, columns, rows) if is_transposed else (X, rows, columns)


def _frames(file, path: Path, separator: str, n_columns: int, head: bool, names_only: bool):
    """What stands below the header, some rows at a time."""
    try:
        return pd.read_csv(
            file,
            sep=separator,
            header=None,
            skiprows=1,
            dtype={0: str},
            keep_default_na=False,
            chunksize=max(1, BLOCK_VALUES // n_columns),
            nrows=HEAD_ROWS if head and not names_only else None,
            usecols=[0, 1] if names_only else None,
            encoding="utf-8-sig",
            low_memory=False,
        )
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path}: has a header but no cells; check how it was made") from error


def _numbers(frame: pd.DataFrame, path: Path) -> np.ndarray:
    """The table as float64; InputError names the first cell and gene without a number."""
    if all(dtype.kind in "iuf" for dtype in frame.dtypes):
        values = frame.to_numpy(dtype=np.float64)
        if not np.isnan(values).any():
            return values
    for position in range(frame.shape[1]):
        column = frame.iloc[:, position]
        is_number = column.dtype.kind in "iuf"
        numbers = column if is_number else pd.to_numeric(column.astype(str), errors="coerce")
        if numbers.isna().any():
            at = int(np.argmax(numbers.isna()))
            value = "empty" if is_number or column.iloc[at] == "" else repr(column.iloc[at])
            what = "every value is a count, cells are rows and genes columns"
            if DECIMAL_COMMA.fullmatch(value.strip("'")):
                what = "save it with decimal points, not decimal commas"
            raise InputError(
                f"{path}: row {frame.index[at]!r}, column {frame.columns[position]!r} is {value}, "
                f"not a number; {what}"
            )
        if not is_number:
            frame.isetitem(position, numbers)
    return frame.to_numpy(dtype=np.float64)
