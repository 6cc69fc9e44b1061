"""Minibatches: which cells, in which step."""

import numpy as np
import pytest
import scipy.sparse as sp

from omics_vae.data import CountData, ShuffledBatches
from simulated_counts import CPU, simulate


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
def test_chunks_are_all_cells_in_their_order(size):
    data = simulate(20, 6).data()
    parts = list(data.chunks(size, CPU))
    x = np.concatenate([x.numpy() for x, _ in parts])
    offset = np.concatenate([offset.numpy() for _, offset in parts])
    np.testing.assert_array_equal(x, data.counts.toarray())
    np.testing.assert_allclose(offset, data.log_offset, rtol=1e-6)


def test_taking_cells_keeps_counts_and_sizes_together():
    data = simulate(20, 6).data()
    mask = np.arange(20) % 3 == 0
    for cells in (mask, np.flatnonzero(mask)):
        taken = data.take(cells)
        assert len(taken) == 7
        np.testing.assert_array_equal(taken.counts.toarray(), data.counts.toarray()[mask])
        np.testing.assert_array_equal(taken.log_offset, data.log_offset[mask])


@pytest.mark.parametrize("offset", [[0.0], [0.0, -np.inf], [0.0, np.nan]])
def test_library_sizes_that_are_missing_or_zero_are_refused(offset):
    with pytest.raises(ValueError, match="library size"):
        CountData(sp.csr_matrix(np.ones((2, 3))), np.array(offset))
