"""The same counts, names and metadata come out of every format."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

import dense_formats
from count_files import (
    CELLS,
    COUNTS,
    GENES,
    IDS,
    WRITERS,
    annotated,
    write_10x_h5_v2,
    write_10x_h5_v3,
    write_10x_mtx,
    write_h5ad,
    write_loom,
    write_table,
    write_zarr,
)
from count_formats import read_counts, tell_format
from job import InputError


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_counts_names_and_ids(name, tmp_path):
    adata, notes = read_counts(WRITERS[name](tmp_path / name))
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert (adata.X.format, adata.X.dtype, adata.X.nnz) == ("csr", np.int32, 4)
    assert (list(adata.obs_names), list(adata.var_names)) == (CELLS, GENES)
    if "table" not in name and "from_r" not in name:
        assert list(adata.var["gene_id"]) == IDS
    assert (notes["dropped_features"], notes["warnings"]) == ({}, [])


def test_dense_tables_are_the_same_in_blocks_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(dense_formats, "BLOCK_VALUES", 1)
    for path in (write_table(tmp_path / "a.csv"), write_loom(tmp_path / "a.loom")):
        adata, _ = read_counts(path)
        np.testing.assert_array_equal(adata.X.toarray(), COUNTS)


def test_the_same_loom_file_as_loompy_writes(tmp_path):
    loompy = pytest.importorskip("loompy")
    path = tmp_path / "a.loom"
    rows, columns = {"Gene": np.array(GENES)}, {"CellID": np.array(CELLS)}
    loompy.create(str(path), sparse.coo_matrix(COUNTS.T), rows, columns)
    np.testing.assert_array_equal(read_counts(path)[0].X.toarray(), COUNTS)


def test_obs_of_the_file_is_kept(tmp_path):
    assert list(read_counts(write_h5ad(tmp_path / "a.h5ad"))[0].obs["cell_type"]) == ["T", "B", "T"]
    loom, _ = read_counts(write_loom(tmp_path / "a.loom"))
    assert dict(loom.obs) and list(loom.obs.columns) == ["depth"]


@settings(max_examples=25, deadline=None)
@given(
    counts=arrays(
        np.int64,
        st.tuples(st.integers(1, 6), st.just(4)),
        elements=st.one_of(st.integers(0, 3), st.integers(0, 2**31 - 1)),
    )
)
def test_any_counts_survive_a_table(counts, tmp_path_factory):
    path = tmp_path_factory.mktemp("round_trip") / "a.csv"
    write_table(path, counts, cells=[f"c{i}" for i in range(len(counts))])
    np.testing.assert_array_equal(read_counts(path)[0].X.toarray(), counts)


@pytest.mark.parametrize("write", [write_h5ad, write_zarr])
def test_the_chosen_matrix_is_read(write, tmp_path):
    suffix = write.__name__.removeprefix("write_")
    source = annotated(X=np.log1p(COUNTS))
    raw = anndata.AnnData(sparse.csr_matrix(COUNTS * 2), var=pd.DataFrame(index=GENES))
    raw.obs_names = CELLS
    path = write(
        tmp_path / f"a.{suffix}", X=source.X, layers={"counts": COUNTS, "X": 3 * COUNTS}, raw=raw
    )
    np.testing.assert_array_equal(read_counts(path, matrix="counts")[0].X.toarray(), COUNTS)
    np.testing.assert_array_equal(read_counts(path, matrix="raw")[0].X.toarray(), 2 * COUNTS)
    with pytest.raises(InputError, match=r"has no layer 'count'; .*one of: X, raw, counts$"):
        read_counts(path, matrix="count")
    with pytest.raises(InputError, match=r"log-transformed data .*whole numbers: raw or counts$"):
        read_counts(path)


def test_loom_layers_are_read_and_listed(tmp_path):
    path = write_loom(tmp_path / "a.loom")
    doubled = read_counts(path, matrix="doubled")[0].X
    np.testing.assert_array_equal(doubled.toarray(), 2 * COUNTS)
    with pytest.raises(InputError, match=r"no layer 'raw'; .*one of: X, doubled$"):
        read_counts(path, matrix="raw")


def test_a_file_without_raw_or_x_says_what_it_has(tmp_path):
    path = write_h5ad(tmp_path / "a.h5ad", layers={"counts": COUNTS})
    with pytest.raises(InputError, match=r"a\.h5ad: has no raw; .*one of: X, counts$"):
        read_counts(path, matrix="raw")
    with h5py.File(path, "a") as file:
        del file["X"]
    with pytest.raises(InputError, match=r"a\.h5ad: has no X; .*one of: counts$"):
        read_counts(path)


def test_only_features_of_the_asked_type_are_kept_and_the_others_counted(tmp_path):
    types = ["Gene Expression", "Antibody Capture", "Gene Expression", "CRISPR Guide Capture"]
    h5ad = annotated()
    h5ad.var["feature_types"] = types
    h5ad.write_h5ad(tmp_path / "a.h5ad")
    write_10x_mtx(tmp_path / "mtx", types=types)
    for path in (write_10x_h5_v3(tmp_path / "a.h5", types), tmp_path / "mtx", tmp_path / "a.h5ad"):
        adata, notes = read_counts(path)
        assert list(adata.var_names) == ["CD3E", "LYZ"]
        assert list(adata.var["gene_id"]) == [IDS[0], IDS[2]]
        np.testing.assert_array_equal(adata.X.toarray(), COUNTS[:, [0, 2]])
        assert notes["dropped_features"] == {"Antibody Capture": 1, "CRISPR Guide Capture": 1}
        antibodies, _ = read_counts(path, feature_type="Antibody Capture")
        assert list(antibodies.var_names) == ["MS4A1"]
        with pytest.raises(InputError, match=r"no features of type 'Peaks'; .*Antibody Capture, "):
            read_counts(path, feature_type="Peaks")


def test_one_of_several_genomes_must_be_chosen(tmp_path):
    path = write_10x_h5_v2(tmp_path / "a.h5", {"mm10": 2 * COUNTS, "hg19": COUNTS})
    folder = tmp_path / "mtx"
    write_10x_mtx(folder / "mm10", version=2, counts=2 * COUNTS)
    write_10x_mtx(folder / "hg19", version=2)
    for source in (path, folder):
        with pytest.raises(InputError, match=r"2 genomes; set the column genome .*: hg19, mm10$"):
            read_counts(source)
        with pytest.raises(InputError, match=r"no genome 'hg38'; .*one of: hg19, mm10$"):
            read_counts(source, genome="hg38")
        mouse, _ = read_counts(source, genome="mm10")
        np.testing.assert_array_equal(mouse.X.toarray(), 2 * COUNTS)


def test_genomes_of_version_3_are_told_by_feature(tmp_path):
    path = write_10x_h5_v3(tmp_path / "a.h5", genomes=["hg38", "mm10", "hg38", "hg38"])
    adata, notes = read_counts(path, genome="hg38")
    assert list(adata.var_names) == ["CD3E", "LYZ", "NKG7"]
    assert notes["dropped_features"] == {"genome mm10": 1}
    with pytest.raises(InputError, match=r"no genome 'hg19'; .*one of: hg38, mm10$"):
        read_counts(path, genome="hg19")
    with pytest.raises(InputError, match=r"a\.csv: does not tell genomes"):
        read_counts(write_table(tmp_path / "a.csv"), genome="hg38")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.h5", "10x_h5"),
        ("a.H5AD", "h5ad"),
        ("a.b.loom", "loom"),
        ("a.csv.gz", "csv"),
        ("a.tsv", "tsv"),
        ("a.txt.gz", "tsv"),
    ],
)
def test_the_format_is_told_from_the_name(name, format):
    assert tell_format(Path(name)) == format


def test_numbers_as_names_stay_as_written(tmp_path):
    path = tmp_path / "a.csv"
    for corner, cells in (("cell,", ["001", "002"]), ("", ["NA", "002"])):
        text = f"\ufeff{corner}0610007P14Rik,007\n{cells[0]},1,2\n{cells[1]},1,2\n"
        path.write_text(text, encoding="utf-8")
        adata, _ = read_counts(path)
        assert list(adata.obs_names) == cells
        assert list(adata.var_names) == ["0610007P14Rik", "007"]


def test_duplicate_names_become_unique_and_are_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",LYZ,LYZ,CD3E,LYZ\nc1,1,2,3,4\nc1,5,6,7,8\n")
    adata, notes = read_counts(path)
    assert list(adata.var_names) == ["LYZ", "LYZ-1", "CD3E", "LYZ-2"]
    assert list(adata.obs_names) == ["c1", "c1-1"]
    assert "1 cell names occur more than once (such as 'c1')" in notes["warnings"][0]
    assert "2 gene names occur more than once (such as 'LYZ')" in notes["warnings"][1]


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
def test_an_h5ad_file_from_before_anndata_0_7(tmp_path):
    path = tmp_path / "old.h5ad"
    with h5py.File(path, "w") as file:
        file["X"] = np.log1p(COUNTS.astype(np.float32))
        file["raw.X"] = COUNTS.astype(np.float32)
        for name, values in (("obs", CELLS), ("var", GENES), ("raw.var", GENES)):
            file[name] = np.array([(value,) for value in values], dtype=[("index", "S8")])
    adata, _ = read_counts(path, matrix="raw")
    np.testing.assert_array_equal(adata.X.toarray(), np.float32(COUNTS))
    assert (list(adata.obs_names), list(adata.var_names)) == (CELLS, GENES)
    with pytest.raises(InputError, match=r"log-transformed data .*whole numbers: raw$"):
        read_counts(path)


def test_real_cell_ranger_output(shared_data):
    v2, v3 = (shared_data / "formats" / f"cellranger-{v}" for v in ("1.2.0", "3.0.0"))
    h5, _ = read_counts(v2 / "filtered_gene_bc_matrices_h5.h5")
    for other in (
        read_counts(v2 / "filtered_gene_bc_matrices")[0],
        read_counts(v2 / "filtered_gene_bc_matrices" / "hg19_chr21")[0],
        read_counts(v2 / "multiple_genomes.h5", genome="hg19_chr21")[0],
    ):
        assert (h5.X != other.X).nnz == 0
        assert list(h5.obs_names) == list(other.obs_names)
        assert list(h5.var_names) == list(other.var_names)
    with pytest.raises(InputError, match=r"genome to one of: another_genome, hg19_chr21$"):
        read_counts(v2 / "multiple_genomes.h5")
    h5, notes = read_counts(v3 / "filtered_feature_bc_matrix.h5")
    mtx, _ = read_counts(v3 / "filtered_feature_bc_matrix")
    assert h5.shape == (1107, 507) and h5.X.nnz == 23_866 and notes["warnings"] == []
    assert (h5.X != mtx.X).nnz == 0
    pd.testing.assert_frame_equal(h5.var, mtx.var)
    assert h5.var.loc["CH507-9B2.2", "gene_id"] == "ENSG00000279493"
