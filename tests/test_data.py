"""Counts into minibatches: which cells, in which step, with what beside their counts."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from omics_vae.data import CountData, ShuffledBatches, choose_device
from simulated_counts import CPU, simulate


@pytest.fixture(scope="module")
def data():
    """20 cells with two covariates and a batch each."""
    rng = np.random.default_rng(0)
    covariates = rng.normal(size=(20, 2)).astype(np.float32)
    return replace(simulate(20, 6).data(), covariates=covariates, batch=2 * np.arange(20) % 5)


@pytest.mark.parametrize(
    ("n_cells", "batch_size"), [(100, 10), (103, 10), (7, 128), (129, 128), (5, 1)]
)
def test_an_epoch_deals_every_cell_once_and_evenly(n_cells, batch_size):
    batches = ShuffledBatches(n_cells, batch_size, seed=3)
    for epoch in range(3):
        first = epoch * batches.steps_per_epoch
        dealt = [batches[first + step] for step in range(batches.steps_per_epoch)]
        assert sorted(np.concatenate(dealt)) == list(range(n_cells))
        sizes = [len(batch) for batch in dealt]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size


def test_a_batch_is_a_function_of_seed_and_step_alone():
    walked = ShuffledBatches(50, 8, seed=1)
    in_order = [walked[step] for step in range(30)]
    for step in (29, 3, 17, 0):
        np.testing.assert_array_equal(ShuffledBatches(50, 8, seed=1)[step], in_order[step])
        np.testing.assert_array_equal(walked[step], in_order[step])
    assert not np.array_equal(ShuffledBatches(50, 8, seed=2)[0], in_order[0])
    assert not np.array_equal(in_order[0], in_order[7]), "every epoch has its own order"


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
