"""Counts in h5ad files: what is written block by block is what AnnData reads, byte by byte."""

from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stored_counts
from omics_vae.counts import BYTES_AN_ENTRY, Counts, StoredMatrix
from stored_counts import CHUNK, CountFile, counts_memory, in_order, write_h5ad

N_CELLS, N_GENES = 50, 12


def dense(n_cells: int = N_CELLS) -> np.ndarray:
    return np.random.default_rng(0).poisson(0.8, (n_cells, N_GENES)).astype(np.int32)


def obs_of(n_cells: int = N_CELLS) -> pd.DataFrame:
    cells = np.arange(n_cells)
    columns = {
        "type": pd.Categorical(np.array(["B", "T", "NK"])[cells % 3], ["NK", "T", "B", "unused"]),
        "stage": pd.Categorical(np.array(["late", "early"])[cells % 2], ["early", "late"], True),
        "age": cells / 2.0,
        "n": cells,
        "good": cells % 2 == 0,
        "lane": np.array(["L1", "L2"], dtype=object)[cells % 2],
    }
    return pd.DataFrame(columns, index=[f"cell{i}" for i in cells])


VAR = pd.DataFrame(
    {"gene_id": [f"ENSG{g}" for g in range(N_GENES)], "selected": np.arange(N_GENES) < 5},
    index=[f"G{g}" for g in range(N_GENES)],
)


def a_file(n_cells: int = N_CELLS) -> CountFile:
    return CountFile(Counts.of(dense(n_cells)), obs_of(n_cells), VAR)


def blocks_of(x: np.ndarray, size: int):
    return (sparse.csr_matrix(x[start : start + size]) for start in range(0, len(x), size))


def as_written(table: pd.DataFrame) -> pd.DataFrame:
    """Text comes back as text or as categories."""
    return table.astype({name: object for name in table if table[name].dtype.kind not in "biuf"})


# ---- written and read


@pytest.mark.parametrize("compressed", [True, False])
def test_what_is_written_is_what_anndata_reads(tmp_path, compressed, small_blocks):
    a_file().write(tmp_path / "a.h5ad", compressed)
    found = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert found.X.format == "csr" and found.X.dtype == np.int32
    assert found.X.has_canonical_format
    np.testing.assert_array_equal(found.X.toarray(), dense())
    pd.testing.assert_frame_equal(as_written(found.obs), as_written(obs_of()))
    pd.testing.assert_frame_equal(as_written(found.var), as_written(VAR))
    for name in ("type", "stage"):
        assert found.obs[name].dtype == obs_of()[name].dtype, "categories, their order and all"
    with h5py.File(tmp_path / "a.h5ad") as file:
        used = {file[f"X/{name}"].compression for name in ("data", "indices", "indptr")}
    assert used == {"gzip" if compressed else None}


def test_it_opens_as_what_it_was(tmp_path):
    a_file().write(tmp_path / "a.h5ad")
    found = CountFile.open(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(found.counts.toarray(), dense())
    pd.testing.assert_frame_equal(as_written(found.obs), as_written(obs_of()))
    pd.testing.assert_frame_equal(as_written(found.var), as_written(VAR))


def test_text_comes_back_with_its_gaps_and_as_categories_where_it_repeats(tmp_path):
    cells = np.arange(N_CELLS)
    columns = {
        "lane": np.array(["L1", "L2"], dtype=object)[cells % 2],
        "note": np.array(["x", np.nan, "y"], dtype=object)[cells % 3],
        "barcode": np.array([f"AC{i}" for i in cells], dtype=object),
    }
    obs = pd.DataFrame(columns, index=pd.Index([f"c{i}" for i in cells], name="cell_id"))
    given = obs.copy()
    CountFile(Counts.of(dense()), obs, VAR).write(tmp_path / "a.h5ad")
    for found in (anndata.read_h5ad(tmp_path / "a.h5ad"), CountFile.open(tmp_path / "a.h5ad")):
        pd.testing.assert_frame_equal(as_written(found.obs), given)
        categorical = [name for name in found.obs if found.obs[name].dtype == "category"]
        assert categorical == ["lane", "note"]
    pd.testing.assert_frame_equal(obs, given)


def test_columns_that_are_not_asked_for_are_left(tmp_path):
    a_file().write(tmp_path / "a.h5ad")
    found = CountFile.open(tmp_path / "a.h5ad", without=("age", "type", "gene_id", "not there"))
    assert list(found.obs) == [name for name in obs_of() if name not in ("age", "type")]
    assert list(found.obs.index) == list(obs_of().index)


def test_further_layers_and_tables_are_written_too(tmp_path):
    matrices = {"X": blocks_of(dense(), 9), "layers/counts": blocks_of(2 * dense(), 20)}
    place = np.random.default_rng(1).random((N_CELLS, 2)).astype(np.float32)
    tables = {"obs": obs_of(), "var": VAR, "obsm": {"X_umap": place}}
    tables["uns"] = {"anomics": {"words": "a text", "n": 3, "share": 0.5}}
    write_h5ad(tmp_path / "a.h5ad", matrices, tables)
    found = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(found.X.toarray(), dense())
    np.testing.assert_array_equal(found.layers["counts"].toarray(), 2 * dense())
    np.testing.assert_array_equal(found.obsm["X_umap"], place)
    assert found.uns["anomics"] == tables["uns"]["anomics"]


def test_counts_without_an_entry_can_be_written(tmp_path):
    empty = CountFile(Counts.of(np.zeros((4, N_GENES), dtype=np.int32)), obs_of(4), VAR)
    empty.write(tmp_path / "a.h5ad")
    found = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert found.X.format == "csr" and found.X.nnz == 0 and found.shape == (4, N_GENES)
    again = CountFile.open(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.counts.toarray(), np.zeros((4, N_GENES)))


def test_blocks_without_an_entry_or_a_cell_change_nothing(tmp_path):
    x = dense()
    x[10:30] = 0
    parts = (x[:10], x[10:20], x[20:20], x[20:31], x[31:])
    blocks = (sparse.csr_matrix(part) for part in parts)
    write_h5ad(tmp_path / "a.h5ad", {"X": blocks}, {"obs": obs_of(), "var": VAR})
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "a.h5ad").X.toarray(), x)


def test_entries_beyond_a_chunk_of_the_file_are_kept(tmp_path):
    """Blocks whose ends do not meet those of the chunks."""
    x = np.random.default_rng(0).integers(1, 9, (70, 2000)).astype(np.int32)
    assert x.size > 2 * CHUNK
    var = pd.DataFrame(index=[f"G{g}" for g in range(2000)])
    write_h5ad(tmp_path / "a.h5ad", {"X": blocks_of(x, 11)}, {"obs": obs_of(70), "var": var})
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "a.h5ad").X.toarray(), x)


def test_genes_in_another_order_are_written_sorted(tmp_path):
    order = np.random.default_rng(0).permutation(N_GENES)
    turned = CountFile(Counts.of(dense()).of_genes(order), obs_of(), VAR.iloc[order])
    turned.write(tmp_path / "a.h5ad")
    found = anndata.read_h5ad(tmp_path / "a.h5ad").X
    assert found.has_sorted_indices and (np.diff(found.indices[: found.indptr[1]]) > 0).all()
    np.testing.assert_array_equal(found.toarray(), dense()[:, order])


@pytest.mark.parametrize("compressed", [True, False])
def test_the_same_content_gives_the_same_bytes(tmp_path, compressed):
    a_file().write(tmp_path / "one.h5ad", compressed)
    a_file().write(tmp_path / "two.h5ad", compressed)
    assert (tmp_path / "one.h5ad").read_bytes() == (tmp_path / "two.h5ad").read_bytes()
    other = CountFile(Counts.of(dense() + 1), obs_of(), VAR)
    other.write(tmp_path / "other.h5ad", compressed)
    assert (tmp_path / "other.h5ad").read_bytes() != (tmp_path / "two.h5ad").read_bytes()


def test_a_stored_file_can_be_written_again(tmp_path):
    """From file to file, without all of it in memory."""
    a_file().write(tmp_path / "one.h5ad")
    CountFile.open(tmp_path / "one.h5ad").write(tmp_path / "two.h5ad")
    assert (tmp_path / "one.h5ad").read_bytes() == (tmp_path / "two.h5ad").read_bytes()


def test_a_writer_that_is_stopped_leaves_no_file(tmp_path):
    def stops():
        yield sparse.csr_matrix(dense()[:20])
        raise RuntimeError("a wrong value")

    tables = {"obs": obs_of(), "var": VAR}
    with pytest.raises(RuntimeError, match="a wrong value"):
        write_h5ad(tmp_path / "a.h5ad", {"X": stops()}, tables)
    assert list(tmp_path.iterdir()) == []
    a_file().write(tmp_path / "a.h5ad")
    before = (tmp_path / "a.h5ad").read_bytes()
    with pytest.raises(RuntimeError, match="a wrong value"):
        write_h5ad(tmp_path / "a.h5ad", {"X": stops()}, tables)
    assert (tmp_path / "a.h5ad").read_bytes() == before, "the one before stays"
    assert len(list(tmp_path.iterdir())) == 1


# ---- some cells


@pytest.mark.parametrize(
    "cells", [np.arange(N_CELLS) % 3 == 1, np.array([40, 4, 7, 4])], ids=["mask", "positions"]
)
def test_taken_cells_bring_what_is_said_of_them(cells):
    found, expected = a_file().take(cells), obs_of().iloc[np.arange(N_CELLS)[cells]]
    np.testing.assert_array_equal(found.counts.toarray(), dense()[cells])
    pd.testing.assert_frame_equal(as_written(found.obs), as_written(expected))
    assert found.var is VAR


def test_categories_that_no_cell_has_are_gone():
    file = a_file()
    found = file.take(np.arange(N_CELLS) % 3 != 0)
    assert found.obs["type"].cat.categories.tolist() == ["NK", "T"]
    assert found.obs["stage"].cat.categories.tolist() == ["early", "late"]
    assert found.obs["stage"].cat.ordered
    pd.testing.assert_frame_equal(file.obs, obs_of())


# ---- the budget


def test_counts_stay_in_the_file_above_the_budget_and_are_read_below(tmp_path):
    a_file().write(tmp_path / "a.h5ad")
    needed = np.count_nonzero(dense()) * BYTES_AN_ENTRY
    for memory, stays in ((0.0, True), (needed - 1, True), (needed, False), (1e12, False)):
        file = CountFile.open(tmp_path / "a.h5ad", memory)
        assert isinstance(file.counts.matrix, StoredMatrix) is stays
        np.testing.assert_array_equal(file.counts.toarray(), dense())
    assert isinstance(CountFile.open(tmp_path / "a.h5ad").counts.matrix, StoredMatrix)


@pytest.mark.parametrize(
    ("memory", "mem_mb", "expected"),
    [
        ("auto", 16_000, 4e9),
        ("auto", 2000, 0.5e9),
        (3, 16_000, 3e9),
        (0.25, 16_000, 0.25e9),
    ],
)
def test_a_job_holds_what_the_config_says_or_a_quarter_of_its_memory(memory, mem_mb, expected):
    resources = SimpleNamespace(mem_mb=mem_mb)
    given = SimpleNamespace(config={"memory": memory}, resources=resources)
    assert counts_memory(given) == pytest.approx(expected)


@pytest.mark.parametrize("bucket", [1, 7, 10_000])
def test_rows_come_in_the_order_asked_for_whatever_the_bucket(tmp_path, monkeypatch, bucket):
    monkeypatch.setattr(stored_counts, "BUCKET_ROWS", bucket)
    rng = np.random.default_rng(0)
    X = sparse.csr_matrix(rng.poisson(0.4, (83, 12)).astype(np.int32))
    X[5] = 0
    X.eliminate_zeros()
    order = rng.permutation(83)
    blocks = ((slice(i, i + 10), X[i : i + 10]) for i in range(0, 83, 10))
    found = list(in_order(blocks, order, tmp_path / "counts.h5ad"))
    assert len(found) == -(-83 // bucket)
    assert (sparse.vstack(found) != X[order]).nnz == 0
    assert list(tmp_path.iterdir()) == []
