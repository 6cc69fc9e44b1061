"""What is wrong with a file of counts is said in one line that names the place and the mend."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from count_checks import as_counts, check_orientation
from count_files import (
    CELLS,
    COUNTS,
    GENES,
    annotated,
    write_10x_h5_v3,
    write_10x_mtx,
    write_h5ad,
    write_loom,
    write_table,
    write_zarr,
)
from count_formats import open_counts
from job import InputError
from messages import is_said


def read(path: Path, **asked: str) -> sparse.csr_matrix:
    return open_counts(path, **asked).read()


def read_text(text: str) -> None:
    """A table of this text."""
    Path("a.csv").write_text(text)
    read(Path("a.csv"))


def read_without(*members: str) -> None:
    """A folder of Cell Ranger's without these files."""
    folder = write_10x_mtx(Path("mtx"))
    for member in members:
        (folder / member).unlink()
    read(folder)


def read_shorter(member: str) -> None:
    """A folder of Cell Ranger's with a name less."""
    folder = write_10x_mtx(Path("mtx"), version=2)
    lines = (folder / member).read_text().splitlines()
    (folder / member).write_text("\n".join(lines[:-1]) + "\n")
    read(folder)


def read_other_mtx() -> None:
    folder = write_10x_mtx(Path("mtx"), version=2)
    (folder / "matrix.mtx").write_text("%%MatrixMarket matrix array integer general\n3 4\n")
    read(folder)


def read_changed(change: Callable[[h5py.File], None], write, name: str, **asked: str) -> None:
    path = write(Path(name))
    with h5py.File(path, "r+") as file:
        change(file)
    read(path, **asked)


def obs_is_a_number(file: h5py.File) -> None:
    del file["obs"]
    file["obs"] = 5
    file["obs"].attrs.update({"encoding-type": "numeric-scalar", "encoding-version": "0.2.0"})


def a_row_of_counts(file: h5py.File) -> None:
    file["layers/total"] = COUNTS.sum(axis=1)


def no_names_of_cells(file: h5py.File) -> None:
    del file["col_attrs/CellID"], file["col_attrs/pca"]


def counts_as_text(file: h5py.File) -> None:
    del file["X"]
    file.create_dataset("X", data=COUNTS.astype(str).astype(object), dtype=h5py.string_dtype())
    file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def read_empty(n_cells: int, n_genes: int) -> None:
    shape = n_cells, n_genes
    anndata.AnnData(sparse.csr_matrix(shape, dtype=np.int32)).write_h5ad("a.h5ad")
    read(Path("a.h5ad"))


def read_genes_as_cells() -> None:
    cells = annotated()
    cells.obs_names, cells.var_names = ["ACTB", "CD3E", "LYZ"], [f"c{i}" for i in range(4)]
    cells.write_h5ad("a.h5ad")
    read(Path("a.h5ad"))


def read_locked() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = write_10x_mtx(Path("mtx"))
    (folder / "matrix.mtx.gz").chmod(0)
    read(folder)


MEMBERS = (
    "the folder must hold matrix.mtx, barcodes.tsv and features.tsv (version 2: genes.tsv), each "
    "plain or .gz"
)
MIXED = "the file or folder mixes two data sets or is cut short: export it again"
FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "a file that is gone when it is to be read": (
        lambda: read(Path("nowhere.csv")),
        "nowhere.csv: there is no such file; correct the path in the sample table",
    ),
    "a file in a folder that you may not read": (
        read_locked,
        "mtx/matrix.mtx.gz: may not be read; give yourself read permission",
    ),
    "a file for a folder": (
        lambda: read(write_table(Path("a.csv")), format="zarr"),
        "a.csv: is a file, but format zarr is a folder; correct the column path or format",
    ),
    "a folder for a file": (
        lambda: read(write_10x_mtx(Path("mtx")), format="csv"),
        "mtx: is a folder, but format csv is a file; correct the column path or format",
    ),
    "a name that does not tell the format": (
        lambda: read(write_table(Path("a.dat"))),
        "a.dat: the name does not tell the format; set the column format to one of: 10x_h5, "
        "10x_mtx, h5ad, zarr, loom, csv, tsv",
    ),
    "a choice of the matrix in a table": (
        lambda: read(write_table(Path("a.csv")), matrix="raw"),
        "a.csv: a csv file has one matrix; leave the column matrix empty or, if its rows are "
        "genes, write transposed there",
    ),
    "a choice of the matrix in a file of Cell Ranger's": (
        lambda: read(write_10x_h5_v3(Path("a.h5")), matrix="raw"),
        "a.h5: a 10x_h5 file has one matrix; leave the column matrix empty",
    ),
    "matrix.mtx without its folder": (
        lambda: read(write_10x_mtx(Path("mtx")) / "matrix.mtx.gz"),
        "mtx/matrix.mtx.gz: has no names of cells and genes; give the folder that holds it and "
        "them",
    ),
    "a 10x folder without matrix.mtx": (
        lambda: read_without("matrix.mtx.gz"),
        f"mtx: has no matrix.mtx; {MEMBERS}",
    ),
    "a 10x folder without features.tsv": (
        lambda: read_without("features.tsv.gz"),
        f"mtx: has no features.tsv or genes.tsv; {MEMBERS}",
    ),
    "a matrix.mtx of another kind": (
        read_other_mtx,
        "mtx/matrix.mtx: cannot be read: it does not begin with %%MatrixMarket matrix coordinate "
        "integer general, as Cell Ranger's matrices do; export it again",
    ),
    "too few barcodes": (
        lambda: read_shorter("barcodes.tsv"),
        f"mtx/matrix.mtx: 2 cell names for a matrix of 3 cells; {MIXED}",
    ),
    "too few features": (
        lambda: read_shorter("genes.tsv"),
        f"mtx/matrix.mtx: 3 gene names for a matrix of 4 genes; {MIXED}",
    ),
    "too few barcodes in a .h5 file": (
        lambda: read(write_10x_h5_v3(Path("a.h5"), cells=CELLS[:2])),
        f"a.h5: 2 cell names for a matrix of 3 cells; {MIXED}",
    ),
    "an h5ad file called .h5": (
        lambda: read(write_h5ad(Path("a.h5"))),
        "a.h5: is not a Cell Ranger file (it holds X, layers, …, var, varm, varp); if it is an "
        "AnnData file, set the column format to h5ad",
    ),
    "a file of Cell Ranger's as h5ad": (
        lambda: read(write_10x_h5_v3(Path("a.h5")), format="h5ad"),
        "a.h5: has no obs, so it is not an AnnData file; set the column format",
    ),
    "an h5ad file whose obs is no table": (
        lambda: read_changed(obs_is_a_number, write_h5ad, "a.h5ad"),
        "a.h5ad: /obs is not a table; write the file anew",
    ),
    "an h5ad file with text for counts": (
        lambda: read_changed(counts_as_text, write_h5ad, "a.h5ad"),
        "a.h5ad: the matrix holds object, not numbers; give the raw counts",
    ),
    "an h5ad file with genes as rows": (
        read_genes_as_cells,
        "a.h5ad: its rows are genes and its columns cells (a row is called 'ACTB'); transpose it "
        "and name cells and genes anew",
    ),
    "an h5ad file without cells": (
        lambda: read_empty(0, 4),
        "a.h5ad: has no cells; check how the file was made",
    ),
    "an h5ad file without genes": (
        lambda: read_empty(3, 0),
        "a.h5ad: has no genes; check how the file was made",
    ),
    "a loom layer that is no matrix": (
        lambda: read_changed(a_row_of_counts, write_loom, "a.loom", matrix="total"),
        "a.loom: /layers/total is no matrix; set the column matrix",
    ),
    "a loom file without names of cells": (
        lambda: read_changed(no_names_of_cells, write_loom, "a.loom"),
        "a.loom: /col_attrs has none of CellID, obs_names (it has depth); add one with the names",
    ),
    "a table with a header alone": (
        lambda: read_text(",CD3E,LYZ\n"),
        "a.csv: has a header but no cells; check how it was made",
    ),
    "a table with a longer row": (
        lambda: read_text(",CD3E,LYZ\nc1,1,2\nc2,1,2,3\n"),
        "a.csv: cannot be read (…Expected 3 fields in line 3, saw 4…); it is damaged, cut short or "
        "of another format: fetch it again, or set the column format",
    ),
    "a table with a shorter row": (
        lambda: read_text(",CD3E,LYZ\nc1,1,2\nc2,1\n"),
        "a.csv: row 'c2', column 'LYZ' is empty, not a number; every value is a count, cells are "
        "rows and genes columns",
    ),
    "a table with two names above the cells": (
        lambda: read_text("a,b,CD3E,LYZ\nc1,1,2\n"),
        f"a.csv: 3 gene names for a matrix of 2 genes; {MIXED}",
    ),
    "a cell without a name": (
        lambda: read_text(",CD3E,LYZ\nc1,1,2\n ,1,2\n"),
        "a.csv: cell number 2 has no name (1 without one in all); give every cell a name",
    ),
    "a count of billions": (
        lambda: read_text(f",CD3E,LYZ\nc1,1,{2**31}\n"),
        "a.csv: cell 'c1', gene 'LYZ' is 2147483648.0, more than the largest possible count "
        "2147483647 (1 such values); check that the matrix holds counts",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_file_of_counts_gives_one_line(name, tmp_path, monkeypatch):
    read_it, expected = FAULTS[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        read_it()
    assert is_said(expected, str(raised.value)), str(raised.value)


def test_the_column_format_tells_what_the_name_does_not(tmp_path):
    table = write_table(tmp_path / "counts.dat")
    np.testing.assert_array_equal(read(table, format="csv").toarray(), COUNTS)
    path = write_h5ad(tmp_path / "a.h5")
    np.testing.assert_array_equal(read(path, format="h5ad").toarray(), COUNTS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-2, r"gene 'LYZ' is -2(\.0)?, but a count cannot be negative \(1 such values\)"),
        (0.25, r"gene 'LYZ' is 0\.25: not a whole number; .*normalised or log-transformed"),
        (2**31, r"gene 'LYZ' is 2147483648(\.0)?, more than the largest possible count 2147483647"),
        (np.inf, r"gene 'LYZ' is inf"),
    ],
)
@pytest.mark.parametrize("name", ["table.csv", "csr.h5ad", "dense.h5ad", "csr.zarr", "a.loom"])
def test_values_that_no_count_can_have_are_named(value, message, name, tmp_path):
    wrong = np.where([[0] * 4, [0, 0, 1, 0], [0] * 4], value, COUNTS.astype(type(value)))
    path = tmp_path / name
    match name.split("."):
        case [_, "csv"]:
            write_table(path, wrong)
        case [_, "loom"]:
            write_loom(path, wrong)
        case ["dense", _]:
            write_h5ad(path, X=wrong)
        case [_, "h5ad"]:
            write_h5ad(path, X=sparse.csr_matrix(wrong))
        case _:
            write_zarr(path, X=sparse.csr_matrix(wrong))
    with pytest.raises(InputError, match=f"{name}: cell 'AAAG-1', {message}"):
        open_counts(path).read()


def test_nan_is_refused_in_every_storage():
    wrong = COUNTS.astype(np.float32)
    wrong[1, 2] = np.nan
    for X in (wrong, sparse.csr_matrix(wrong), sparse.csc_matrix(wrong)):
        with pytest.raises(InputError, match=r"here: cell 'AAAG-1', gene 'LYZ' is nan \(1 such"):
            as_counts(X, pd.Index(CELLS), pd.Index(GENES), "here")


def test_the_right_cell_is_named_after_empty_ones():
    wrong = sparse.csr_matrix([[0, 0], [0, 0], [-1, 0], [3, -1]])
    with pytest.raises(InputError, match=r"cell 'c', gene 'x' is -1, .*\(2 such values\)"):
        as_counts(wrong, pd.Index(list("abcd")), pd.Index(["x", "y"]), "here")


def test_stored_zeros_are_dropped():
    X = sparse.csr_matrix((np.array([0, 5]), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert as_counts(X, pd.Index(["a"]), pd.Index(["x", "y"]), "here").nnz == 1


def test_entries_given_twice_are_added_without_overflow():
    X = sparse.csr_matrix(
        (np.array([200, 100], dtype=np.uint8), np.array([1, 1]), np.array([0, 2])), shape=(1, 2)
    )
    counts = as_counts(X, pd.Index(["a"]), pd.Index(["x", "y"]), "here")
    assert counts.toarray().tolist() == [[0, 300]]


@pytest.mark.parametrize(
    ("value", "said"), [("n/a", "'n/a'"), ("", "empty"), ("NA", "'NA'"), ("True", "'True'")]
)
def test_a_field_of_a_table_that_is_no_number_is_named(value, said, tmp_path):
    wrong = COUNTS.astype(object)
    wrong[1, 2] = value
    path = write_table(tmp_path / "a.csv", wrong)
    with pytest.raises(InputError, match=rf"row 'AAAG-1', column 'LYZ' is {said}, not a number"):
        open_counts(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (",c1,c2\nXIST,1,2\nGAPDH,1,2\n", "a row is called 'GAPDH'"),
        (",c1,c2\nENSG00000000003.15,1,2\nENSG00000000005,1,2\n", "called 'ENSG00000000003.15'"),
        (",AAACATACAACCAC-1,AAACATTGAGCTAC-1\nx,1,2\ny,1,2\n", "called 'AAACATACAACCAC-1'"),
    ],
)
def test_genes_as_rows_are_known_by_their_names_and_mended_by_a_word(text, found, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=f"rows are genes .*{found}.; write transposed into the"):
        open_counts(path)
    file = open_counts(path, matrix="transposed")
    assert file.read().toarray().tolist() == [[1, 1], [2, 2]]
    assert list(file.obs.index) == text.splitlines()[0].split(",")[1:]
    head = open_counts(path, matrix="transposed", head=True)
    assert head.obs.index.equals(file.obs.index) and head.var.index.equals(file.var.index)


def test_a_gene_among_names_of_cells_is_no_sign_where_genes_have_such_names_too(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",ACTB,GAPDH\nGAPDH,1,2\n")
    assert open_counts(path).read().toarray().tolist() == [[1, 2]]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_a_loom_file_without_cells_or_genes(shape, tmp_path):
    what = "cells" if shape[0] == 0 else "genes"
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix"] = np.zeros(shape[::-1])
        file["row_attrs/Gene"] = np.array(GENES[: shape[1]], dtype="S8")
        file["col_attrs/CellID"] = np.array(CELLS[: shape[0]], dtype="S8")
    with pytest.raises(InputError, match=rf"a\.loom: has no {what}"):
        read(tmp_path / "a.loom")


def test_a_cut_file_is_one_line(tmp_path):
    paths = [
        write_h5ad(tmp_path / "a.h5ad"),
        write_10x_h5_v3(tmp_path / "a.h5"),
        write_loom(tmp_path / "a.loom"),
        write_table(tmp_path / "a.csv.gz"),
        write_10x_mtx(tmp_path / "mtx") / "matrix.mtx.gz",
        write_10x_mtx(tmp_path / "mtx2") / "features.tsv.gz",
        write_10x_mtx(tmp_path / "mtx3", version=2) / "matrix.mtx",
    ]
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        source = path.parent if ".mtx" in path.name or "features" in path.name else path
        with pytest.raises(InputError, match=rf"{path.name}: cannot be read") as raised:
            open_counts(source).read()
        assert "\n" not in str(raised.value)


def test_damage_at_any_byte_gives_counts_or_one_line(tmp_path):
    rng = np.random.default_rng(0)
    for write, name in ((write_10x_h5_v3, "a.h5"), (write_h5ad, "a.h5ad"), (write_loom, "a.loom")):
        path = write(tmp_path / name)
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[rng.integers(len(content), size=20)] = rng.integers(256, size=20)
            path.write_bytes(damaged.tobytes())
            try:
                open_counts(path).read()
            except InputError as error:
                assert "\n" not in str(error)


def test_indices_outside_the_matrix_are_an_error(tmp_path):
    path = write_10x_h5_v3(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["matrix/indices"][0] = 400
    with pytest.raises(InputError, match=r"a\.h5: cannot be read"):
        open_counts(path).read()


def test_a_pickle_in_a_zarr_store_is_never_loaded(tmp_path):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_run"),)

    path = write_zarr(tmp_path / "a.zarr", X=COUNTS)
    array = path / "X"
    attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
    for old in array.rglob("*"):
        if old.is_file():
            old.unlink()
    description = {"zarr_format": 2, "shape": [3, 4], "chunks": [3, 4], "dtype": "<f4"}
    description |= {"fill_value": 0, "order": "C", "filters": None}
    description |= {"compressor": {"id": "pickle", "protocol": 4}}
    (array / ".zarray").write_text(json.dumps(description))
    (array / ".zattrs").write_text(json.dumps(attributes))
    (array / "0.0").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(InputError, match=r"a\.zarr"):
        open_counts(path).read()
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("cell", ["ACGTACGTACGTAC", "ACGTACGTACGTAC-1", "ctrl_ACGTACGTACGTAC-1"])
def test_barcodes_as_columns_say_that_rows_are_genes(cell):
    genes, cells = pd.Index(["NOC2L", "HES4"]), pd.Index([cell])
    check_orientation(cells, genes, Path("a.csv"), "csv")
    with pytest.raises(InputError, match=r"its rows are genes.*write transposed"):
        check_orientation(genes, cells, Path("a.csv"), "csv")
