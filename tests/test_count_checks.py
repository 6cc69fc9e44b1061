"""What is wrong with a file of counts is said in one line that names the place and the mend."""

import json
import os
import pickle
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
    write_10x_h5_v3,
    write_10x_mtx,
    write_h5ad,
    write_loom,
    write_table,
    write_zarr,
)
from count_formats import open_counts
from job import InputError


def test_a_path_that_does_not_fit_the_format(tmp_path):
    table = write_table(tmp_path / "counts.csv")
    with pytest.raises(InputError, match=r"nowhere\.csv: there is no such file; correct the path"):
        open_counts(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match=r"unknown format '10x'; .*one of: 10x_h5, 10x_mtx"):
        open_counts(table, format="10x")
    with pytest.raises(InputError, match="is a file, but format zarr is a folder"):
        open_counts(table, format="zarr")
    with pytest.raises(InputError, match="is a folder, but format csv is a file"):
        open_counts(tmp_path, format="csv")
    with pytest.raises(InputError, match="a csv file has one matrix"):
        open_counts(table, matrix="raw")
    renamed = table.rename(tmp_path / "counts.dat")
    with pytest.raises(InputError, match=r"counts\.dat: the name does not tell the format"):
        open_counts(renamed)
    np.testing.assert_array_equal(open_counts(renamed, format="csv").read().toarray(), COUNTS)
    folder = write_10x_mtx(tmp_path / "mtx")
    with pytest.raises(InputError, match=r"matrix\.mtx\.gz: .*give the folder"):
        open_counts(folder / "matrix.mtx.gz")


@pytest.mark.parametrize("member", ["matrix.mtx", "barcodes.tsv", "features.tsv"])
def test_a_missing_member_of_a_folder_is_named(member, tmp_path):
    folder = write_10x_mtx(tmp_path / "mtx")
    (folder / f"{member}.gz").unlink()
    with pytest.raises(InputError, match=rf"mtx: has no {member}.*must hold matrix\.mtx"):
        open_counts(folder)


@pytest.mark.parametrize(("member", "what"), [("barcodes.tsv", "cell"), ("genes.tsv", "gene")])
def test_names_that_do_not_match_the_matrix(member, what, tmp_path):
    folder = write_10x_mtx(tmp_path / "mtx", version=2)
    lines = (folder / member).read_text().splitlines()
    (folder / member).write_text("\n".join(lines[:-1]) + "\n")
    n = len(lines)
    with pytest.raises(InputError, match=f"{n - 1} {what} names for a matrix of {n} {what}s"):
        open_counts(folder)


def test_barcodes_that_do_not_match_an_h5_matrix(tmp_path):
    path = write_10x_h5_v3(tmp_path / "a.h5", cells=CELLS[:2])
    with pytest.raises(InputError, match="2 cell names for a matrix of 3 cells"):
        open_counts(path)


def test_an_h5_file_that_is_not_from_cell_ranger(tmp_path):
    path = write_h5ad(tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"not a Cell Ranger file .*obs.*set .*format to h5ad"):
        open_counts(path)
    np.testing.assert_array_equal(open_counts(path, format="h5ad").read().toarray(), COUNTS)
    for format in ("h5ad", "loom"):
        with pytest.raises(InputError, match=r"not an? (AnnData|loom) file"):
            open_counts(write_10x_h5_v3(tmp_path / "b.h5"), format=format)


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


def test_text_is_not_a_matrix():
    text = COUNTS.astype(object)
    with pytest.raises(InputError, match="the matrix holds object, not numbers"):
        as_counts(text, pd.Index(CELLS), pd.Index(GENES), "here")


@pytest.mark.parametrize(
    ("value", "said"), [("n/a", "'n/a'"), ("", "empty"), ("NA", "'NA'"), ("True", "'True'")]
)
def test_a_field_of_a_table_that_is_no_number_is_named(value, said, tmp_path):
    wrong = COUNTS.astype(object)
    wrong[1, 2] = value
    path = write_table(tmp_path / "a.csv", wrong)
    with pytest.raises(InputError, match=rf"row 'AAAG-1', column 'LYZ' is {said}, not a number"):
        open_counts(path)


def test_tables_of_the_wrong_form(tmp_path):
    path = write_table(tmp_path / "a.csv", separator="\t")
    with pytest.raises(InputError, match=r"header has no comma, .*is the format tsv\?"):
        open_counts(path)
    path.write_text(",CD3E,LYZ\nc1,1,2\nc2,1,2,3\n")
    with pytest.raises(InputError, match=r"cannot be read .*Expected 3 fields in line 3, saw 4"):
        open_counts(path)
    path.write_text(",CD3E,LYZ\nc1,1,2\nc2,1\n")
    with pytest.raises(InputError, match="row 'c2', column 'LYZ' is empty"):
        open_counts(path)
    path.write_text("a,b,CD3E,LYZ\nc1,1,2\n")
    with pytest.raises(InputError, match="3 gene names for a matrix of 2 genes"):
        open_counts(path)
    path.write_text(",CD3E,LYZ\n")
    with pytest.raises(InputError, match="a header but no cells"):
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


def test_an_empty_name_is_an_error(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",CD3E,\nc1,1,2\n")
    with pytest.raises(InputError, match=r"gene number 2 has no name \(1 without one in all\)"):
        open_counts(path)
    path.write_text(",CD3E,LYZ\nc1,1,2\n ,1,2\n")
    with pytest.raises(InputError, match="cell number 2 has no name"):
        open_counts(path)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_cells_or_no_genes(shape, tmp_path):
    what = "cells" if shape[0] == 0 else "genes"
    anndata.AnnData(sparse.csr_matrix(shape, dtype=np.int32)).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix"] = np.zeros(shape[::-1])
        file["row_attrs/Gene"] = np.array(GENES[: shape[1]], dtype="S8")
        file["col_attrs/CellID"] = np.array(CELLS[: shape[0]], dtype="S8")
    for name in ("a.h5ad", "a.loom"):
        with pytest.raises(InputError, match=f"{name}: has no {what}"):
            open_counts(tmp_path / name)


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
