"""Rows of counts are the same wherever they lie: in memory, in HDF5 or in zarr."""

import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from omics_vae import counts as module
from omics_vae.counts import BYTES_AN_ENTRY, Counts, StoredMatrix

N_CELLS, N_GENES = 23, 7


def dense() -> np.ndarray:
    """Some counts, with cells and genes that have none."""
    x = np.random.default_rng(0).poisson(0.6, (N_CELLS, N_GENES)).astype(np.int32)
    x[[0, 9, 10, 22]] = 0
    x[:, 3] = 0
    return x


def stored_in(folder, kind: str, x: np.ndarray) -> StoredMatrix:
    """The counts in a file."""
    path = folder / f"counts.{kind}"
    adata = ad.AnnData(sp.csr_matrix(x))
    if kind == "h5ad":
        adata.write_h5ad(path)
        return StoredMatrix.of_file(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(path)
    group = zarr.open_group(path, mode="r")["X"]
    return StoredMatrix(group, group.attrs["shape"])


@pytest.fixture(scope="module", params=["memory", "h5ad", "zarr"])
def counts(request, tmp_path_factory) -> Counts:
    if request.param == "memory":
        return Counts.of(dense())
    return Counts(stored_in(tmp_path_factory.mktemp("counts"), request.param, dense()))


@pytest.fixture(params=[0, 1, 64])
def read_on(request, monkeypatch):
    """Rows wanted one by one, some together, and all in one reading."""
    monkeypatch.setattr(module, "READ_ON", request.param)


def same(found, expected: np.ndarray) -> None:
    assert sp.issparse(found) and found.format == "csr" and found.dtype == np.int32
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.toarray(), expected)


ROWS = {
    "all": slice(None),
    "a slice": slice(3, 12),
    "to the end": slice(17, 99),
    "the last": slice(-4, None),
    "every third": slice(1, 20, 3),
    "backwards": slice(20, 2, -2),
    "sorted": np.array([1, 2, 5, 20]),
    "any order": np.array([20, 1, 5, 2]),
    "repeated": np.array([4, 4, 19, 0, 4, 19]),
    "from the end": np.array([-1, 3, -23]),
    "mask": np.arange(N_CELLS) % 4 == 1,
    "one": np.array([11]),
    "everyone": np.arange(N_CELLS),
    "empty slice": slice(5, 5),
    "slice of none": slice(9, 3),
    "no position": np.array([], dtype=np.int64),
    "no cell of a mask": np.zeros(N_CELLS, dtype=bool),
}


@pytest.mark.parametrize("name", ROWS)
def test_any_choice_of_cells_is_read_and_taken(counts, name, read_on):
    rows, expected = ROWS[name], dense()[ROWS[name]]
    same(counts[rows], expected)
    taken = counts.take(rows)
    assert taken.shape == expected.shape and len(taken) == len(expected)
    same(taken[:], expected)
    np.testing.assert_array_equal(taken.toarray(), expected)


def test_taken_cells_can_be_taken_from_again(counts, read_on):
    first, second = np.array([7, 7, 1, 20, 13, 2]), np.array([5, 0, 1, 5])
    same(counts.take(first)[second], dense()[first][second])
    same(counts.take(first).take(second)[:], dense()[first][second])
    same(counts.take(slice(4, 20)).take(np.arange(16) > 9)[2:4], dense()[16:18])
    same(counts.take(first).take(slice(3, 3))[:], dense()[:0])


GENES = {
    "another order": np.array([5, 0, 2]),
    "a mask": np.arange(N_GENES) % 2 == 0,
    "none": np.array([], dtype=np.int64),
    "all backwards": np.arange(N_GENES)[::-1],
}


@pytest.mark.parametrize("name", GENES)
def test_genes_stand_in_the_order_asked_for(counts, name):
    genes, cells = GENES[name], np.array([8, 1, 8])
    chosen = counts.of_genes(genes)
    assert chosen.shape == (N_CELLS, dense()[:, genes].shape[1])
    same(chosen[:], dense()[:, genes])
    same(chosen.take(cells)[:], dense()[cells][:, genes])
    same(counts.take(cells).of_genes(genes)[:], dense()[cells][:, genes])


def test_genes_of_genes_are_those_of_the_first_choice(counts):
    first, second = np.array([6, 1, 4, 0]), np.array([2, 0])
    same(counts.of_genes(first).of_genes(second)[:], dense()[:, first][:, second])


@pytest.mark.parametrize("size", [1, 4, 23, 100])
def test_blocks_are_all_cells_in_their_order(counts, size):
    for of in (counts, counts.take(np.arange(N_CELLS)[::-1]).of_genes(np.array([4, 2]))):
        rows, blocks = zip(*of.blocks(size), strict=True)
        ends = [of_block.stop for of_block in rows]
        assert [of_block.start for of_block in rows] == [0, *ends[:-1]] and ends[-1] == N_CELLS
        assert [block.shape[0] for block in blocks] == [r.stop - r.start for r in rows]
        assert all(block.shape[0] == size for block in blocks[:-1])
        same(sp.vstack(blocks, format="csr"), of.toarray())


def test_no_cells_have_no_blocks(counts):
    assert list(counts.take(slice(0, 0)).blocks()) == []


@pytest.mark.parametrize("size", [5, 4096])
def test_sums_are_those_of_the_dense_counts(counts, size, monkeypatch):
    """Float64 whatever the counts are, so that no sum is too large for their type."""
    monkeypatch.setattr(Counts.blocks, "__defaults__", (size,))
    some = counts.take(np.array([3, 3, 18, 0])).of_genes(np.array([6, 3, 1]))
    for of in (counts, some):
        for axis in (0, 1):
            found = of.sum(axis)
            assert found.dtype == np.float64
            np.testing.assert_array_equal(found, of.toarray().sum(axis))
    none = counts.take(slice(0, 0))
    assert none.sum(0).tolist() == [0.0] * N_GENES and none.sum(1).tolist() == []


def test_a_sum_may_be_larger_than_any_count():
    largest = np.full((3, 2), 2**31 - 1, dtype=np.int32)
    assert Counts.of(largest).sum(0).tolist() == [3 * (2.0**31 - 1)] * 2


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_choices_one_after_the_other_are_those_of_a_dense_matrix(property_counts, data):
    x, expected = data.draw(st.sampled_from(property_counts)), dense()
    for _ in range(data.draw(st.integers(1, 5))):
        axis = data.draw(st.integers(0, 1))
        n = expected.shape[axis]
        places = st.lists(st.integers(0, max(n - 1, 0)), max_size=2 * n if n else 0)
        chosen = data.draw(
            st.one_of(
                places.map(lambda found: np.array(found, dtype=np.int64)),
                st.lists(st.booleans(), min_size=n, max_size=n).map(
                    lambda found: np.array(found, dtype=bool)
                ),
                *([] if axis else [st.slices(n)]),
            )
        )
        # A gene stands in a choice once.
        if axis and chosen.dtype != bool:
            chosen = np.unique(chosen)[:: data.draw(st.sampled_from([1, -1]))]
        x = x.of_genes(chosen) if axis else x.take(chosen)
        expected = expected[:, chosen] if axis else expected[chosen]
    assert x.shape == expected.shape
    rows = data.draw(st.slices(len(expected)))
    np.testing.assert_array_equal(x[rows].toarray(), expected[rows])
    np.testing.assert_array_equal(x.toarray(), expected)
    np.testing.assert_array_equal(x.sum(0), expected.sum(0))
    np.testing.assert_array_equal(x.sum(1), expected.sum(1))


@pytest.fixture(scope="module")
def property_counts(tmp_path_factory) -> list[Counts]:
    folder = tmp_path_factory.mktemp("property")
    stored = (stored_in(folder, kind, dense()) for kind in ("h5ad", "zarr"))
    return [Counts.of(dense()), *map(Counts, stored)]


# ---- in memory or in the file


def test_counts_are_read_if_they_fit_the_budget_and_else_stay(tmp_path):
    ad.AnnData(sp.csr_matrix(dense())).write_h5ad(tmp_path / "counts.h5ad")
    needed = np.count_nonzero(dense()) * BYTES_AN_ENTRY
    read, left = (Counts.open(str(tmp_path / "counts.h5ad"), m) for m in (needed, needed - 1))
    assert sp.issparse(read.matrix) and read.is_plain
    assert isinstance(left.matrix, StoredMatrix) and not left.is_plain
    for counts in (read, left):
        same(counts[:], dense())


def test_only_rows_of_a_matrix_in_memory_are_plain(counts):
    is_read = not isinstance(counts.matrix, StoredMatrix)
    assert counts.is_plain == counts.take(np.array([3, 1])).is_plain == is_read
    assert not counts.of_genes(np.array([3, 1])).is_plain


def test_a_view_copies_nothing(counts):
    assert counts.take(np.array([3, 1])).of_genes(np.array([2])).matrix is counts.matrix
    assert Counts.of(counts) is counts


def test_only_the_wanted_rows_are_read_from_the_file(tmp_path, monkeypatch):
    stored = stored_in(tmp_path, "h5ad", dense())
    read = []
    real = StoredMatrix._run
    monkeypatch.setattr(
        StoredMatrix,
        "_run",
        lambda self, start, stop: read.append((int(start), int(stop))) or real(self, start, stop),
    )
    monkeypatch.setattr(module, "READ_ON", 3)
    stored[np.array([20, 2, 4, 21, 9])]
    assert read == [(2, 5), (9, 10), (20, 22)]
    read.clear()
    stored[5:8]
    assert read == [(5, 8)]


# ---- a matrix that is none


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("data", lambda a: a[:-1]),
        ("indices", lambda a: a[:-1]),
        ("indptr", lambda a: a[:-1]),
        ("indptr", lambda a: np.append(a, a[-1])),
        ("indptr", lambda a: np.append(a[:-1], a[-1] + 1)),
        ("indptr", lambda a: np.append(a[0] + 1, a[1:])),
    ],
    ids=["short data", "short indices", "a cell less", "a cell more", "too far", "late start"],
)
def test_parts_that_do_not_fit_together_are_refused(part, change):
    x = sp.csr_matrix(dense() + 1)
    parts = {name: getattr(x, name) for name in ("data", "indices", "indptr")}
    assert StoredMatrix(parts, x.shape).nnz == x.nnz
    with pytest.raises(ValueError, match="do not fit together"):
        StoredMatrix(parts | {part: change(parts[part])}, x.shape)


def test_a_matrix_without_a_count_can_be_stored(tmp_path):
    none = np.zeros((4, 3), dtype=np.int32)
    for kind in ("h5ad", "zarr"):
        stored = Counts(stored_in(tmp_path, kind, none))
        same(stored[:], none)
        same(stored[np.array([3, 0])], none[:2])
        assert stored.sum(1).tolist() == [0.0] * 4


def test_the_type_of_the_file_is_kept(tmp_path):
    stored = stored_in(tmp_path, "h5ad", dense().astype(np.int64))
    assert stored.dtype == stored[2:4].dtype == np.int64
    assert stored.nnz == np.count_nonzero(dense())
