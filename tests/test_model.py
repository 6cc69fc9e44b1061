"""The generative model: shares, depth, gradients, the bound on the evidence, its file."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.special import logsumexp

from omics_vae.data import CountData
from omics_vae.inference import elbo_parts
from omics_vae.model import VAE, load_model, save_model
from simulated_counts import CPU, gene_names, simulate, small_model


@pytest.fixture(scope="module")
def data():
    return simulate(80, 15, seed=4).data()


@pytest.fixture
def model(data):
    return small_model(data, dropout=0.2).eval()


def flat(model: VAE) -> VAE:
    """Without the decoder's random weights: the profile of the biases for every z."""
    with torch.no_grad():
        model.logits.weight.zero_()
    return model


@torch.no_grad()
def test_shares_of_the_genes_and_the_rest_sum_to_one(model):
    z, offset = torch.randn(9, 3) * 3, torch.zeros(9)
    shares = (model.decode(z, offset) - model.log_headroom).exp().sum(1)  # of the model's genes
    logits = model.logits(model.decoder(model.decoder_input(z)))
    rest = torch.softmax(logits, dim=1)[:, -1]
    torch.testing.assert_close(shares + rest, torch.ones(9))
    assert (shares < 1).all()


@torch.no_grad()
def test_expected_counts_are_in_proportion_to_the_library_size(model):
    z = torch.randn(5, 3)
    once = model.decode(z, torch.full((5,), 6.0)).exp()
    thrice = model.decode(z, torch.full((5,), 6.0) + np.log(3.0)).exp()
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-5, atol=0)


@torch.no_grad()
def test_the_unit_of_the_library_size_is_of_no_consequence(model, data):
    x, offset = data.batch(slice(None), CPU)
    mean, log_variance = model.encode(x, offset)
    model.log_common_depth += np.log(50.0)
    scaled_mean, scaled_log_variance = model.encode(x, offset + np.log(50.0))
    torch.testing.assert_close(scaled_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaled_log_variance, log_variance, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_encoder_sees_the_profile_and_not_the_depth(model, data):
    x, offset = data.batch(slice(None), CPU)
    mean, _ = model.encode(x, offset)
    deeper, _ = model.encode(4 * x, offset + np.log(4.0))
    torch.testing.assert_close(deeper, mean, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.encode(x, offset + 1.0)[0], mean, atol=1e-2)


@pytest.mark.parametrize("unit", [1.0, 1e-3])
@torch.no_grad()
def test_it_starts_as_the_pooled_profile(data, unit):
    """Also where sizes are size factors near 1, far below the cells' totals."""
    data = CountData(data.counts, data.log_offset + np.log(unit))
    model = small_model(data).eval()
    size = np.exp(data.log_offset)
    pooled = size[:, None] * np.asarray(data.counts.sum(0)).ravel() / size.sum()
    z, offset = torch.randn(80, 3), torch.tensor(data.log_offset).float()
    np.testing.assert_allclose(flat(model).decode(z, offset).exp(), pooled, rtol=0.01)
    near = small_model(data).eval().decode(z, offset).exp().numpy()
    assert np.abs(np.log(near / pooled)).max() < 0.35, "the random weights start small"
    torch.testing.assert_close(model.log_theta.exp(), torch.ones(15))


@torch.no_grad()
def test_headroom_lets_the_mean_reach_the_counts():
    x = np.zeros((3, 4))
    x[:, 0] = [900, 1000, 10]
    data = CountData(sp.csr_matrix(x), np.log([1.0, 1.1, 0.02]))
    model = small_model(data).eval()
    model.logits.bias.copy_(torch.tensor([30.0, 0.0, 0.0, 0.0, 0.0]))
    mu = flat(model).decode(torch.zeros(3, 3), torch.tensor(data.log_offset).float()).exp()
    assert (mu[:, 0].numpy() >= x[:, 0] * 0.999).all()


def test_no_headroom_where_sizes_are_totals(data):
    totals = np.asarray(data.counts.sum(1), dtype=np.float64).ravel()
    assert float(small_model(CountData(data.counts, np.log(totals * 1.5))).log_headroom) == 0.0


def test_gradients_of_the_elbo_equal_finite_differences():
    data = simulate(6, 5, n_latent=2, seed=1).data()
    model = small_model(data, n_latent=2, n_hidden=6, dropout=0.0).double()
    x = torch.tensor(data.counts.toarray(), dtype=torch.float64)
    offset = torch.tensor(data.log_offset)

    def elbo():
        torch.manual_seed(0)
        parts = model(x, offset)
        return (parts.reconstruction - parts.kl.sum(1)).sum()

    elbo().backward()
    step = 1e-6
    for name, parameter in model.named_parameters():
        numeric = torch.zeros_like(parameter)
        for i in range(parameter.numel()):
            value = parameter.data.view(-1)[i].item()
            parameter.data.view(-1)[i] = value + step
            above = elbo().item()
            parameter.data.view(-1)[i] = value - step
            numeric.view(-1)[i] = (above - elbo().item()) / (2 * step)
            parameter.data.view(-1)[i] = value
        torch.testing.assert_close(parameter.grad, numeric, rtol=1e-4, atol=1e-4, msg=name)


@torch.no_grad()
def test_the_elbo_is_below_the_evidence_by_the_kl_to_the_true_posterior():
    """log p(x) = ELBO + KL(q(z|x) || p(z|x)), both integrals over a grid of the one latent."""
    data = simulate(5, 8, n_latent=1, seed=3, depth=30.0).data()
    model = small_model(data, n_latent=1, n_hidden=8).eval()
    model.logits.weight.mul_(20.0)  # z must matter
    model.posterior_mean.bias.fill_(0.7)
    x, offset = data.batch(slice(None), CPU)
    z = np.linspace(-9, 9, 4001)
    grid = torch.tensor(z, dtype=torch.float32)[:, None]
    log_cell = np.log(z[1] - z[0])
    reconstruction, kl = elbo_parts(model, data, CPU, draws=4000)
    mean, log_variance = (v.double().numpy()[:, 0] for v in model.encode(x, offset))
    for i in range(5):
        repeated = x[i].expand(len(z), -1), offset[i].expand(len(z))
        log_joint = model.reconstruction(*repeated, grid).double().numpy()
        log_joint -= 0.5 * z**2 + 0.5 * np.log(2 * np.pi)
        evidence = logsumexp(log_joint) + log_cell
        log_q = -0.5 * ((z - mean[i]) ** 2 / np.exp(log_variance[i]) + log_variance[i])
        log_q -= 0.5 * np.log(2 * np.pi)
        gap = (np.exp(log_q + log_cell) * (log_q - (log_joint - evidence))).sum()
        elbo = reconstruction[i] - kl[i].sum()
        assert elbo < evidence
        assert evidence - elbo == pytest.approx(gap, abs=0.05 + 0.02 * gap)
        assert gap > 0.03


@torch.no_grad()
def test_a_training_step_draws_from_the_posterior():
    """Its ELBO, averaged over many steps, is the one that cells are read with."""
    data = simulate(5, 8, n_latent=1, seed=3, depth=300.0).data()
    model = small_model(data, n_latent=1, n_hidden=8).eval()
    model.logits.weight.mul_(20.0)
    model.posterior_log_variance.bias.fill_(-3.0)
    x, offset = data.batch(slice(None), CPU)
    torch.manual_seed(0)
    steps = model(x.repeat(2000, 1), offset.repeat(2000))
    found = steps.reconstruction.reshape(2000, 5).double().numpy()
    reconstruction, kl = elbo_parts(model, data, CPU, draws=2000, seed=1)
    error = found.std(0) / np.sqrt(1000.0)
    assert (np.abs(found.mean(0) - reconstruction) < 4 * error).all()
    np.testing.assert_allclose(steps.kl[:5].numpy(), kl, rtol=1e-5, atol=1e-6)


def test_posterior_variance_stays_in_its_bounds(model, data):
    x, offset = data.batch(slice(None), CPU)
    with torch.no_grad():
        model.posterior_log_variance.bias.copy_(torch.tensor([-1e3, 0.0, 1e3]))
        _, log_variance = model.encode(x, offset)
        parts = model(x, offset)
    assert (log_variance[:, 0] == -10).all()
    assert (log_variance[:, 2] == 5).all()
    assert torch.isfinite(parts.reconstruction).all()


def test_the_prior_of_theta_is_a_gaussian_on_its_logarithm(model):
    with torch.no_grad():
        model.log_theta.copy_(torch.linspace(-1, 1, 15))
    normal = torch.distributions.Normal(0.0, 0.5)
    at_mode = normal.log_prob(torch.zeros(15)).sum()
    expected = normal.log_prob(model.log_theta).sum() - at_mode
    torch.testing.assert_close(model.log_theta_prior(), expected)


def test_a_stored_model_reads_every_cell_bit_for_bit(model, data, tmp_path):
    weights, description = tmp_path / "model.safetensors", tmp_path / "model.json"
    genes = gene_names(15)
    save_model(model, weights, description, genes)
    loaded, loaded_genes = load_model(weights, description)
    assert loaded_genes == genes
    assert loaded.architecture == model.architecture
    assert not loaded.training
    for a, b in zip(elbo_parts(model, data, CPU), elbo_parts(loaded, data, CPU), strict=True):
        np.testing.assert_array_equal(a, b)
    first = weights.read_bytes(), description.read_bytes()
    save_model(loaded, weights, description, loaded_genes)
    assert (weights.read_bytes(), description.read_bytes()) == first


def test_a_wrong_number_of_genes_is_refused(model, data, tmp_path):
    weights, description = tmp_path / "model.safetensors", tmp_path / "model.json"
    with pytest.raises(ValueError, match="14 gene names for a model of 15"):
        save_model(model, weights, description, gene_names(14))
    assert not weights.exists()
    save_model(model, weights, description, gene_names(15))
    content = json.loads(description.read_text())
    content["architecture"]["n_genes"] = 14
    description.write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_model(weights, description)
    x, offset = data.batch(slice(None), CPU)
    with pytest.raises(RuntimeError, match="shapes"):
        model(x[:, :14], offset)
