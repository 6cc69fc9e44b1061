"""Reading cells with a model."""

import numpy as np
import pytest
import torch

from omics_vae import inference
from omics_vae.inference import dispersion, elbo_parts, embed, expected_counts, held_out_elbo
from simulated_counts import CPU, simulate, small_model


@pytest.fixture(scope="module")
def data():
    return simulate(60, 12, seed=2).data()


@pytest.fixture
def model(data):
    return small_model(data)


def test_the_size_of_chunks_changes_no_number(model, data, monkeypatch):
    mean, variance = embed(model, data, CPU)
    monkeypatch.setattr(inference, "CHUNK", 7)
    chunked, chunked_variance = embed(model, data, CPU)
    np.testing.assert_allclose(chunked, mean, atol=1e-6)
    np.testing.assert_allclose(chunked_variance, variance, rtol=1e-5)
    mu = np.full((60, 12), np.nan)
    for cells, values in expected_counts(model, mean, data.log_offset, CPU):
        mu[cells] = values
    monkeypatch.undo()
    ((_, whole),) = expected_counts(model, mean, data.log_offset, CPU)
    np.testing.assert_allclose(mu, whole, rtol=1e-5)


def test_expected_counts_are_the_decoded_means(model, data):
    mean, _ = embed(model, data, CPU)
    ((cells, mu),) = expected_counts(model, mean, data.log_offset, CPU)
    with torch.no_grad():
        log_mu = model.decode(torch.tensor(mean), torch.tensor(data.log_offset).float())
    assert cells == slice(0, 512)
    np.testing.assert_allclose(mu, np.exp(log_mu.double().numpy()), rtol=1e-6)


def test_reading_is_without_dropout_and_leaves_the_random_stream_alone(model, data):
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = elbo_parts(model, data, CPU)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    model.train()
    for a, b in zip(first, elbo_parts(model, data, CPU), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(embed(model, data, CPU)[0], embed(model.train(), data, CPU)[0])


def test_a_fixed_dimension_costs_nothing_and_says_nothing(model, data):
    reconstruction, kl = elbo_parts(model, data, CPU, fixed={1: 0.3})
    assert (kl[:, 1] == 0).all()
    _, free = elbo_parts(model, data, CPU)
    np.testing.assert_array_equal(kl[:, [0, 2]], free[:, [0, 2]])
    # With all dimensions fixed nothing is drawn: the likelihood at that point.
    reconstruction, kl = elbo_parts(model, data, CPU, fixed={0: 0.1, 1: -0.2, 2: 0.5})
    z = torch.tensor([[0.1, -0.2, 0.5]]).expand(len(data), 3)
    with torch.no_grad():
        expected = model.reconstruction(*data.batch(slice(None), CPU), z)
    np.testing.assert_allclose(reconstruction, expected.numpy(), rtol=1e-5)
    assert (kl == 0).all()


def test_held_out_elbo_is_the_mean_of_the_cells_with_its_standard_error(model, data):
    reconstruction, kl = elbo_parts(model, data, CPU, 4)
    found = held_out_elbo(model, data, CPU)
    cells = reconstruction - kl.sum(1)
    assert found.elbo == pytest.approx(cells.mean())
    assert found.elbo == pytest.approx(found.reconstruction - found.kl.sum())
    assert found.elbo_se == pytest.approx(cells.std(ddof=1) / np.sqrt(60))


def test_dispersion_is_theta_within_the_models_bounds(model):
    with torch.no_grad():
        model.log_theta[:3] = torch.tensor([-50.0, 0.5, 50.0])
    theta = dispersion(model)
    np.testing.assert_allclose(theta[:3], np.exp([-10.0, 0.5, 10.0]), rtol=1e-6)
    assert theta.dtype == np.float64
