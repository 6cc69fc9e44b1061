"""Counts into minibatches: which cells, in which step, with what beside their counts."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from omics_vae.counts import Counts, StoredMatrix
from omics_vae.data import CountData, DeviceData, ShuffledBatches, choose_device
from simulated_counts import CPU, simulate


@pytest.fixture(scope="module")
def data():
    """20 cells with two covariates and a batch each."""
    rng = np.random.default_rng(0)
    covariates = rng.normal(size=(20, 2)).astype(np.float32)
    return replace(simulate(20, 6).data(), covariates=covariates, batch=2 * np.arange(20) % 5)


# ---- the cells of each step


def numbered(n_cells: int) -> CountData:
    """Cells that tell their number, from 1 on: it is the sum of the counts of genes 0 and 1."""
    number = np.arange(1, n_cells + 1, dtype=np.int32)
    counts = np.column_stack([number // 3, number - number // 3, number % 5])
    offset = np.log(number)
    covariates, batch = number[:, None].astype(np.float32), number.astype(np.int64)
    return CountData(sp.csr_matrix(counts), offset, covariates, batch)


def in_file(data: CountData, folder) -> CountData:
    """The same with the counts left in a file, half of its rows and in another order."""
    n_cells, n_genes = data.counts.shape
    place = np.random.default_rng(9).permutation(2 * n_cells)[:n_cells]
    stored = np.zeros((2 * n_cells, n_genes), dtype=np.int32)
    stored[place] = data.counts.toarray()
    path = str(folder / "counts.h5ad")
    ad.AnnData(sp.csr_matrix(stored)).write_h5ad(path)
    return replace(data, counts=Counts(StoredMatrix.of_file(path), place))


def cells_at(batches: ShuffledBatches, step: int) -> np.ndarray:
    """The cells of a step, told by their counts, which must agree with all else said of them."""
    data, at = batches[step]
    counts = data.counts[at].toarray()
    number = counts[:, :2].sum(1)
    np.testing.assert_array_equal(counts[:, 2], number % 5)
    np.testing.assert_allclose(np.exp(data.log_offset[at]), number)
    np.testing.assert_array_equal(data.covariates[at, 0], number)
    np.testing.assert_array_equal(data.batch[at], number)
    return number - 1


@pytest.fixture
def small_buffers(monkeypatch):
    """Four blocks of about five cells a buffer instead of 64 of 256."""
    monkeypatch.setattr(ShuffledBatches, "BLOCKS", 4)
    monkeypatch.setattr(ShuffledBatches, "BLOCK_CELLS", 5)


@pytest.mark.parametrize(
    ("n_cells", "batch_size"), [(100, 10), (103, 10), (7, 128), (129, 128), (5, 1)]
)
def test_an_epoch_deals_every_cell_once_and_evenly(n_cells, batch_size):
    batches = ShuffledBatches(numbered(n_cells), batch_size, seed=3)
    for epoch in range(3):
        first = epoch * batches.steps_per_epoch
        dealt = [cells_at(batches, first + step) for step in range(batches.steps_per_epoch)]
        assert sorted(np.concatenate(dealt)) == list(range(n_cells))
        sizes = [len(batch) for batch in dealt]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size


@pytest.mark.parametrize("n_cells", [20, 21, 41, 100, 187])
@pytest.mark.parametrize("batch_size", [2, 7, 20, 64])
def test_several_buffers_deal_every_cell_once_too(small_buffers, n_cells, batch_size):
    batches = ShuffledBatches(numbered(n_cells), batch_size, seed=3)
    assert batches.n_buffers == -(-n_cells // 20)
    for epoch in range(3):
        first = epoch * batches.steps_per_epoch
        dealt = [cells_at(batches, first + step) for step in range(batches.steps_per_epoch)]
        assert sorted(np.concatenate(dealt)) == list(range(n_cells))
        assert 1 <= min(map(len, dealt)) <= max(map(len, dealt)) <= batch_size


def test_batches_of_a_large_data_set_are_as_large_as_asked_for():
    """Up to the rounding of 64 blocks a buffer: an epoch takes hardly more steps than it must."""
    for n_cells in (16_385, 40_000, 100_000):
        counts = sp.csr_matrix((n_cells, 1))
        batches = ShuffledBatches(CountData(counts, np.zeros(n_cells)), 128, seed=1)
        assert batches.steps_per_epoch <= 1.03 * n_cells / 128 + batches.n_buffers


def test_up_to_one_buffer_an_epoch_is_a_permutation_of_all_cells():
    """Any two cells may meet; each neighbour of a cell is as likely beside it as any other."""
    batches, n_cells = ShuffledBatches(numbered(60), 30, seed=1), 60
    beside = [np.isin([0, 1, 59], cells_at(batches, 2 * epoch)) for epoch in range(400)]
    with_first = np.array([there[1:] == there[0] for there in beside]).mean(0)
    np.testing.assert_allclose(with_first, 29 / (n_cells - 1), atol=4 * 0.5 / np.sqrt(400))


def test_a_batch_beyond_one_buffer_is_of_many_places(small_buffers):
    """A buffer is of blocks from anywhere, and differs from epoch to epoch."""
    batches = ShuffledBatches(numbered(187), 20, seed=1)
    epochs = [
        [frozenset(cells_at(batches, first + step)) for step in range(batches.steps_per_buffer)]
        for first in range(0, 20 * batches.steps_per_epoch, batches.steps_per_epoch)
    ]
    buffers = [frozenset().union(*dealt) for dealt in epochs]
    assert len(set(buffers)) == 20
    assert np.mean([max(buffer) - min(buffer) for buffer in buffers]) > 80
    in_one = [batch for dealt in epochs for batch in dealt if len(batch) > 10]
    assert np.mean([max(batch) - min(batch) for batch in in_one]) > 80


def test_a_batch_is_a_function_of_seed_and_step_alone():
    data = numbered(50)
    walked = ShuffledBatches(data, 8, seed=1)
    in_order = [cells_at(walked, step) for step in range(30)]
    for step in (29, 3, 17, 0):
        again = cells_at(ShuffledBatches(data, 8, seed=1), step)
        np.testing.assert_array_equal(again, in_order[step])
        np.testing.assert_array_equal(cells_at(walked, step), in_order[step])
    assert not np.array_equal(cells_at(ShuffledBatches(data, 8, seed=2), 0), in_order[0])
    assert not np.array_equal(in_order[0], in_order[7]), "every epoch has its own order"


@pytest.mark.parametrize("n_cells", [19, 187])
def test_counts_in_a_file_are_dealt_like_those_in_memory(small_buffers, tmp_path, n_cells):
    data = numbered(n_cells)
    stored = in_file(data, tmp_path)
    of_memory, of_file = (ShuffledBatches(of, 6, seed=2) for of in (data, stored))
    n = of_memory.steps_per_epoch
    assert of_file.steps_per_epoch == n
    in_order = [cells_at(of_memory, step) for step in range(3 * n)]
    for step in range(3 * n):
        np.testing.assert_array_equal(cells_at(of_file, step), in_order[step])
    # What was read ahead is of no use here: back, on, into the middle of another epoch.
    for step in (n + 3, n + 4, 0, 2 * n - 1, 2 * n, 5, 3 * n - 1, n // 2):
        np.testing.assert_array_equal(cells_at(of_file, step), in_order[step])
    resumed = ShuffledBatches(stored, 6, seed=2)
    for step in range(n + n // 2, 3 * n):
        np.testing.assert_array_equal(cells_at(resumed, step), in_order[step])


def test_what_is_dealt_from_a_file_is_in_memory(small_buffers, tmp_path):
    batches = ShuffledBatches(in_file(numbered(187), tmp_path), 6, seed=2)
    for step in range(batches.steps_per_epoch):
        data, _ = batches[step]
        assert data.counts.is_plain
        assert len(data) <= 24, "no more than a buffer"


def test_counts_in_memory_are_not_copied(small_buffers):
    data = numbered(187)
    assert ShuffledBatches(data, 6, seed=2)[40][0] is data
    # A choice of genes is read like a file: the loops want rows of a plain matrix.
    some = replace(data, counts=data.counts.of_genes(np.array([1, 0, 2])))
    batches = ShuffledBatches(some, 6, seed=2)
    assert batches[40][0].counts.is_plain
    expected = [cells_at(ShuffledBatches(data, 6, seed=2), step) for step in range(40)]
    for step in range(40):
        np.testing.assert_array_equal(cells_at(batches, step), expected[step])


# ---- cells on a device


def test_counts_copied_to_a_device_are_dense_there_as_they_were(data):
    """Positions in any order and repeated; cells without a count; rows of a larger matrix."""
    counts = data.counts.toarray()
    counts[[0, 7, 19]] = 0
    data = replace(data, counts=counts)
    cells = np.array([7, 3, 3, 0, 19, 12, 4])
    for of in (data, data.take(np.array([19, 5, 7, 7, 1, 2, 3, 4, 8, 9, 10, 11, 12, 0] * 2))):
        for chosen in (cells, cells[:1], np.arange(len(of))):
            found, expected = DeviceData(of, CPU).chunk(chosen), of.chunk(chosen, CPU)
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)


@pytest.mark.parametrize("size", [1, 7, 20, 100])
def test_chunks_are_all_cells_in_their_order(data, size):
    parts = list(data.chunks(size, CPU))
    assert max(len(part.x) for part in parts) <= size
    joined = {
        name: torch.cat([getattr(part, name) for part in parts]).numpy()
        for name in ("x", "log_offset", "covariates", "batch")
    }
    np.testing.assert_array_equal(joined["x"], data.counts.toarray())
    np.testing.assert_allclose(joined["log_offset"], data.log_offset, rtol=1e-6)
    np.testing.assert_array_equal(joined["covariates"], data.covariates)
    np.testing.assert_array_equal(joined["batch"], data.batch)


def test_a_chunk_has_the_types_that_the_model_wants(data):
    chunk = data.chunk(np.array([4, 2]), CPU)
    assert [t.dtype for t in chunk] == [torch.float32, torch.float32, torch.float32, torch.int64]
    np.testing.assert_array_equal(chunk.x, data.counts.toarray()[[4, 2]])
    assert chunk.batch.tolist() == [3, 4]


def test_taking_cells_keeps_all_that_is_known_of_them_together(data):
    mask = np.arange(20) % 3 == 0
    for cells in (mask, np.flatnonzero(mask)):
        taken = data.take(cells)
        assert len(taken) == 7
        np.testing.assert_array_equal(taken.counts.toarray(), data.counts.toarray()[mask])
        for name in ("log_offset", "covariates", "batch"):
            np.testing.assert_array_equal(getattr(taken, name), getattr(data, name)[mask])


def test_without_a_design_there_is_one_batch_and_no_covariate():
    data = simulate(20, 6).data()
    assert data.covariates.shape == (20, 0)
    assert (data.batch == 0).all()
    chunk = data.chunk(slice(0, 3), CPU)
    assert chunk.covariates.shape == (3, 0)
    assert chunk.batch.dtype == torch.int64


@pytest.mark.parametrize("offset", [[0.0], [0.0, -np.inf], [0.0, np.nan]])
def test_library_sizes_that_are_missing_or_zero_are_refused(offset):
    with pytest.raises(ValueError, match="library size"):
        CountData(sp.csr_matrix(np.ones((2, 3))), np.array(offset))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"covariates": np.zeros((3, 1), np.float32)}, "2 cells of counts but 3 rows of covari"),
        ({"batch": np.zeros(1, np.int64)}, "2 cells of counts but 1 batch codes"),
    ],
)
def test_a_design_of_other_cells_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CountData(sp.csr_matrix(np.ones((2, 3))), np.zeros(2), **wrong)


@pytest.mark.parametrize("visible", [False, True])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, visible):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if visible else "cpu")
    if visible:
        assert choose_device("cuda").type == "cuda"
    else:
        with pytest.raises(ValueError, match="no CUDA device"):
            choose_device("cuda")
