"""Where training starts: the null model of the training cells."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from omics_vae.data import CountData
from omics_vae.model import VARIANCE_FLOOR
from simulated_counts import CPU, simulate, small_model


@pytest.fixture(scope="module")
def data():
    return simulate(80, 15, seed=4).data()


def decoded(model, data, flat=False):
    """p(x|z) of all cells at random z; ``flat``: without the random weights."""
    if flat:
        for name in ("profile", "zero_logit", "log_theta_of_cell"):
            if hasattr(model, name):
                getattr(model, name).weight.zero_()
    batch = data.chunk(slice(None), CPU)
    torch.manual_seed(3)
    z = torch.randn(len(data), model.architecture.n_latent)
    return model.decode(z, model.encode(batch), batch)


@pytest.mark.parametrize("unit", [1.0, 1e-3])
@pytest.mark.parametrize("decoder", ["softmax", "free"])
@pytest.mark.parametrize("likelihood", ["poisson", "nb", "zinb"])
@torch.no_grad()
def test_counts_start_as_the_pooled_profile(data, unit, decoder, likelihood):
    """Also where sizes are size factors near 1, far below the cells' totals."""
    data = CountData(data.counts, data.log_offset + np.log(unit))
    switches = {"decoder": decoder, "likelihood": likelihood}
    size = np.exp(data.log_offset)
    pooled = size[:, None] * np.asarray(data.counts.sum(0)).ravel() / size.sum()
    start = decoded(small_model(data, **switches).eval(), data, flat=True)
    np.testing.assert_allclose(start.log_mu.exp(), pooled, rtol=0.01)
    near = decoded(small_model(data, **switches).eval(), data).log_mu.exp().numpy()
    assert np.abs(np.log(near / pooled)).max() < 0.35, "the random weights start small"
    assert not np.allclose(near, pooled, rtol=1e-3), "but not at 0, where z has no gradient"


@torch.no_grad()
def test_a_gene_without_a_count_starts_low_and_finite(data):
    counts = data.counts[:].tolil()
    counts[:, 4] = 0
    data = CountData(counts.tocsr(), data.log_offset)
    for decoder in ("softmax", "free"):
        start = decoded(small_model(data, decoder=decoder).eval(), data, flat=True).log_mu[:, 4]
        expected = np.log(0.5 / np.exp(data.log_offset).sum()) + data.log_offset
        np.testing.assert_allclose(start, expected, atol=1e-4)


@pytest.mark.parametrize("dispersion", ["gene", "gene_batch", "gene_cell"])
@torch.no_grad()
def test_theta_starts_at_the_mode_of_its_prior(data, dispersion):
    data = replace(data, batch=np.arange(80) % 2)
    model = small_model(data, dispersion=dispersion, n_batches=2).eval()
    assert (decoded(model, data, flat=True).log_theta == 0).all()
    assert float(model.log_theta_prior()) == 0.0


@torch.no_grad()
def test_a_zinb_starts_with_few_lost_counts(data):
    share = torch.sigmoid(decoded(small_model(data, likelihood="zinb"), data, True).zero_logit)
    torch.testing.assert_close(share, torch.full_like(share, 0.0474), rtol=1e-3, atol=0)


@pytest.mark.parametrize("fixed", [None, 0.3])
@torch.no_grad()
def test_a_gaussian_starts_as_mean_and_variance_of_the_log_counts(data, fixed, small_blocks):
    model = small_model(data, likelihood="gaussian", gaussian_variance=fixed).eval()
    start = decoded(model, data, flat=True)
    depth = np.exp(np.median(data.log_offset))
    y = np.log1p(data.counts.toarray() * (depth / np.exp(data.log_offset))[:, None])
    np.testing.assert_allclose(start.mean, np.tile(y.mean(0), (80, 1)), rtol=1e-4)
    expected = y.var(0) if fixed is None else np.full(15, 0.3)
    np.testing.assert_allclose(start.variance, expected, rtol=1e-4)


@torch.no_grad()
def test_a_gene_that_never_varies_starts_above_the_floor_of_the_variance():
    data = CountData(sp.csr_matrix([[0, 5], [0, 5]]), np.zeros(2))
    model = small_model(data, likelihood="gaussian")
    assert torch.isfinite(model.log_gene_variance).all()
    torch.testing.assert_close(model.gene_variance(), torch.full((2,), 2 * VARIANCE_FLOOR))


@torch.no_grad()
def test_headroom_lets_the_mean_reach_the_counts():
    x = np.zeros((3, 4))
    x[:, 0] = [900, 1000, 10]
    data = CountData(sp.csr_matrix(x), np.log([1.0, 1.1, 0.02]))
    model = small_model(data).eval()
    model.profile.bias.copy_(torch.tensor([30.0, 0.0, 0.0, 0.0, 0.0]))
    mu = decoded(model, data, flat=True).mean
    assert (mu[:, 0].numpy() >= x[:, 0] * 0.999).all()


def test_no_headroom_where_sizes_are_totals(data):
    totals = np.asarray(data.counts.sum(1), dtype=np.float64).ravel()
    totals_and_more = CountData(data.counts, np.log(totals * 1.5))
    assert float(small_model(totals_and_more).log_headroom) == 0.0
    sizes = CountData(data.counts, np.log(totals * 1.5 / 100))
    assert float(small_model(sizes, decoder="free").log_headroom) == 0.0, "a free one needs none"


def test_the_encoder_reads_at_the_median_depth(data):
    expected = np.median(data.log_offset)
    assert float(small_model(data).log_common_depth) == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
def test_the_prior_of_a_latent_size_is_mean_and_variance_of_each_batch(data):
    """A batch without training cells has that of all; one whose sizes are alike has some width."""
    batch = np.repeat([0, 1, 3], [30, 48, 2])
    offset = data.log_offset + 0.7 * batch
    offset[batch == 3] = 8.0
    data = CountData(data.counts, offset, batch=batch)
    model = small_model(data, library_size="latent", n_batches=4).eval()
    for b in (0, 1):
        ours = offset[batch == b]
        expected = [ours.mean(), np.log(ours.var())]
        np.testing.assert_allclose(model.size_prior[b], expected, rtol=1e-5)
    np.testing.assert_allclose(
        model.size_prior[2], [offset.mean(), np.log(offset.var())], rtol=1e-5
    )
    np.testing.assert_allclose(model.size_prior[3], [8.0, np.log(1e-4)], rtol=1e-5)
    # Its posterior starts, narrow, at the observed size.
    chunk = data.chunk(slice(None), CPU)
    q = model.encode(chunk)
    torch.testing.assert_close(q.log_size, chunk.log_offset)
    torch.testing.assert_close(q.log_size_variance, torch.full((80,), -5.0))


@torch.no_grad()
def test_pseudo_cells_start_as_cells(data):
    model = small_model(data, prior="vamp", prior_components=5).eval()
    chunk = data.chunk(np.array([0, 19, 39, 59, 79]), CPU)
    torch.testing.assert_close(model.prior.pseudo_cells, model.view(chunk))
    prior, q = model.prior_of_z(), model.encode(chunk)
    torch.testing.assert_close(prior.mean, q.mean)
    torch.testing.assert_close(prior.log_variance, q.log_variance)
    torch.testing.assert_close(prior.log_weight.exp(), torch.full((5,), 0.2))
