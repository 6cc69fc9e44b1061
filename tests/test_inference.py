"""Reading cells with a model: posterior, ELBO, evidence and refinement, against closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, nbinom, norm

from omics_vae import inference
from omics_vae.data import CountData
from omics_vae.inference import (
    Embedding,
    cell_elbo,
    decoded,
    embed,
    importance_weighted_evidence,
    refine,
)
from omics_vae.training import TrainingPlan, train
from simulated_counts import CPU, simulate, small_model

LATENT_SIZE = {"library_size": "latent"}
MIXTURE = {"prior": "mixture", "prior_components": 3}


@pytest.fixture(scope="module")
def data():
    return simulate(60, 12, seed=2).data()


@pytest.fixture
def model(data):
    return small_model(data)


def fields(embedding: Embedding) -> list[np.ndarray]:
    return [getattr(embedding, name) for name in Embedding.__dataclass_fields__]


def test_the_size_of_chunks_changes_no_posterior_and_no_expectation(model, data, monkeypatch):
    whole = embed(model, data, CPU)
    ((cells, observed, expected),) = decoded(model, data, whole, CPU)
    assert cells == slice(0, 60)
    monkeypatch.setattr(inference, "CHUNK", 7)
    for one, other in zip(fields(embed(model, data, CPU)), fields(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    seen = np.full((60, 12), np.nan)
    for cells, x, likelihood in decoded(model, data, whole, CPU):
        np.testing.assert_array_equal(x, observed[cells])
        seen[cells] = likelihood.mean
    np.testing.assert_allclose(seen, expected.mean, rtol=1e-5)


@torch.no_grad()
def test_decoded_is_the_likelihood_at_the_posterior_mean(model, data):
    at = embed(model, data, CPU)
    ((_, x, likelihood),) = decoded(model, data, at, CPU)
    batch = data.chunk(slice(None), CPU)
    direct = model.decode(torch.tensor(at.mean), model.encode(batch), batch)
    np.testing.assert_allclose(likelihood.mean, direct.mean.double(), rtol=1e-6)
    np.testing.assert_array_equal(x, data.counts.toarray())
    assert x.dtype == np.float64
    assert likelihood.mean.dtype == torch.float64


def test_cells_are_decoded_as_if_of_another_batch():
    plain = simulate(20, 12, seed=2).data()
    ours = replace(plain, covariates=np.tile(np.float32([1, 0]), (20, 1)))
    theirs = replace(plain, covariates=np.tile(np.float32([0, 1]), (20, 1)))
    model = small_model(ours, n_covariates=2)
    at = embed(model, ours, CPU)
    ((_, _, here),) = decoded(model, ours, at, CPU)
    ((_, _, there),) = decoded(model, theirs, at, CPU)
    with torch.no_grad():
        model.decoder[0].weight[:, -2:] = model.decoder[0].weight[:, [-1, -2]]
    ((_, _, swapped),) = decoded(model, theirs, at, CPU)
    assert (here.mean / there.mean - 1).abs().max() > 0.01
    torch.testing.assert_close(swapped.mean, here.mean)


def test_a_gaussian_is_read_in_log_counts(data):
    model = small_model(data, likelihood="gaussian")
    ((_, y, likelihood),) = decoded(model, data, embed(model, data, CPU), CPU)
    scale = np.exp(np.median(data.log_offset) - data.log_offset)
    np.testing.assert_allclose(y, np.log1p(data.counts.toarray() * scale[:, None]), rtol=1e-5)
    assert (likelihood.mean - torch.tensor(y)).abs().mean() < 1.0


@pytest.mark.parametrize("architecture", [{}, LATENT_SIZE, MIXTURE])
def test_reading_is_without_dropout_and_leaves_the_random_stream_alone(data, architecture):
    model = small_model(data, **architecture)

    def read():
        model.train()
        elbo = cell_elbo(model, data, CPU)
        iw = importance_weighted_evidence(model, data, CPU, 3)
        refined = refine(model, data, CPU, 3, 0.1)
        numbers = [elbo.reconstruction, elbo.kl, elbo.kl_dimensions, iw.log_p, refined.refined]
        return numbers + fields(refined.embedding) + fields(embed(model.train(), data, CPU))

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = read()
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    for a, b in zip(first, read(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_fixed_dimension_costs_nothing_and_says_nothing(model, data):
    fixed = cell_elbo(model, data, CPU, fixed={1: 0.3})
    free = cell_elbo(model, data, CPU)
    assert (fixed.kl_dimensions[:, 1] == 0).all()
    np.testing.assert_array_equal(fixed.kl_dimensions[:, [0, 2]], free.kl_dimensions[:, [0, 2]])
    np.testing.assert_allclose(fixed.kl, free.kl - free.kl_dimensions[:, 1], rtol=1e-5, atol=1e-6)
    # With all dimensions fixed nothing is drawn: the likelihood at that point.
    nothing = cell_elbo(model, data, CPU, fixed={0: 0.1, 1: -0.2, 2: 0.5})
    batch = data.chunk(slice(None), CPU)
    with torch.no_grad():
        z = torch.tensor([[0.1, -0.2, 0.5]]).expand(len(data), 3)
        expected = model.decode(z, model.encode(batch), batch).log_prob(batch.x).sum(-1)
    np.testing.assert_allclose(nothing.reconstruction, expected.numpy(), rtol=3e-5)
    assert (nothing.kl == 0).all()


@torch.no_grad()
def test_a_fixed_dimension_leaves_the_marginal_of_a_mixture_prior(data):
    model = small_model(data, **MIXTURE)
    model.prior.log_variance.copy_(torch.tensor([[1.0, 0.0, -1.0]]).expand(3, 3))
    found = cell_elbo(model, data, CPU, draws=400, fixed={1: 0.3}).kl
    at = embed(model, data, CPU)
    mean, sd = torch.tensor(at.mean[:, [0, 2]]), torch.tensor(at.variance[:, [0, 2]]).sqrt()
    torch.manual_seed(0)
    z = mean + sd * torch.randn(4000, 60, 2)
    log_q = torch.distributions.Normal(mean, sd).log_prob(z).sum(-1)
    prior = model.prior_of_z()
    scale = torch.exp(0.5 * prior.log_variance[:, [0, 2]])
    normal = torch.distributions.Normal(prior.mean[:, [0, 2]], scale)
    log_p = torch.logsumexp(prior.log_weight + normal.log_prob(z[..., None, :]).sum(-1), -1)
    assert found.mean() == pytest.approx(float((log_q - log_p).mean()), abs=0.03)


def test_the_elbo_of_cells_has_a_mean_a_standard_error_and_an_objective(model, data):
    found = cell_elbo(model, data, CPU)
    np.testing.assert_allclose(found.of_cells, found.reconstruction - found.kl)
    np.testing.assert_allclose(found.kl, found.kl_dimensions.sum(1), rtol=1e-5, atol=1e-6)
    assert found.mean == pytest.approx(found.of_cells.mean())
    assert found.se == pytest.approx(found.of_cells.std(ddof=1) / np.sqrt(60))
    assert found.objective(3.0) == pytest.approx(found.reconstruction.mean() - 3 * found.kl.mean())
    assert found.objective(1.0) == pytest.approx(found.mean)


@pytest.mark.parametrize("architecture", [{}, LATENT_SIZE])
def test_an_embedding_is_the_posterior_and_can_be_given_back(data, architecture):
    model = small_model(data, **architecture)
    at = embed(model, data, CPU)
    with torch.no_grad():
        q = model.encode(data.chunk(slice(None), CPU))
    np.testing.assert_allclose(at.mean, q.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at.variance, q.log_variance.exp(), rtol=1e-5)
    np.testing.assert_allclose(at.log_size, q.log_size, rtol=1e-6)
    if architecture:
        np.testing.assert_allclose(at.log_size_variance, q.log_size_variance.exp(), rtol=1e-5)
    else:
        assert (at.log_size_variance == 0).all()
    given, own = cell_elbo(model, data, CPU, at=at), cell_elbo(model, data, CPU)
    np.testing.assert_allclose(given.of_cells, own.of_cells, rtol=1e-5)
    few = at.take(np.array([5, 2]))
    for part, whole in zip(fields(few), fields(at), strict=True):
        np.testing.assert_array_equal(part, whole[[5, 2]])


def test_a_given_posterior_replaces_the_encoders(data, monkeypatch):
    """Of each cell its own, in every chunk; the KL of z and of log s in closed form."""
    monkeypatch.setattr(inference, "CHUNK", 25)
    model = small_model(data, **LATENT_SIZE)
    rng = np.random.default_rng(0)
    mean, log_variance = rng.standard_normal((2, 60, 3))
    log_size = data.log_offset + rng.normal(0, 0.3, 60)
    at = Embedding(mean, np.exp(log_variance), log_size, np.full(60, 0.02))
    found = cell_elbo(model, data, CPU, at=at)
    of_z = 0.5 * (mean**2 + np.exp(log_variance) - log_variance - 1)
    np.testing.assert_allclose(found.kl_dimensions, of_z, rtol=1e-4)
    m, v = data.log_offset.mean(), data.log_offset.var()
    of_size = 0.5 * ((log_size - m) ** 2 / v + 0.02 / v - np.log(0.02 / v) - 1)
    np.testing.assert_allclose(found.kl, of_z.sum(1) + of_size, rtol=1e-4)
    # Without spread, the reconstruction is the likelihood at that z and that size.
    sharp = Embedding(mean, np.full((60, 3), 1e-12), log_size, np.full(60, 1e-12))
    found, where = cell_elbo(model, data, CPU, at=sharp).reconstruction, []
    for cells, x, likelihood in decoded(model, data, sharp, CPU):
        where.append(likelihood.log_prob(torch.tensor(x)).sum(-1).numpy())
        shares = likelihood.mean.numpy() / np.exp(log_size[cells])[:, None]
        assert (shares.sum(1) < 1).all(), "the library size is the given one"
    np.testing.assert_allclose(found, np.concatenate(where), rtol=3e-5)


# A linear decoder with a Gaussian error of fixed variance: everything has a closed form.
VARIANCE = 0.5


def linear_model(y: np.ndarray, n_latent: int, **architecture):
    """The module's model of real values: counts whose log(1 + count) they are."""
    data = CountData(sp.csr_matrix(np.expm1(y)), np.zeros(len(y)))
    model = small_model(
        data,
        n_latent,
        dropout=0.0,
        n_layers=0,
        likelihood="gaussian",
        gaussian_variance=VARIANCE,
        **architecture,
    )
    return model, data


def draw_linear(n_cells: int, loadings: np.ndarray, centre: np.ndarray, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z, e = rng.standard_normal((n_cells, loadings.shape[1])), rng.standard_normal((n_cells, 8))
    return centre + z @ loadings.T + np.sqrt(VARIANCE) * e


def linear_evidence(y, loadings, centre) -> np.ndarray:
    """log N(y; b, W W^T + v I) of each cell."""
    covariance = loadings @ loadings.T + VARIANCE * np.eye(len(centre))
    return multivariate_normal(centre, covariance).logpdf(y)


class Linear:
    """Orthogonal loadings W, so that the exact posterior has independent dimensions, and is set."""

    def __init__(self, **architecture):
        rng = np.random.default_rng(3)
        self.loadings = np.linalg.qr(rng.standard_normal((8, 2)))[0] * np.array([2.0, 1.0])
        self.centre = rng.normal(1.0, 0.5, 8)
        self.y = draw_linear(60, self.loadings, self.centre)
        self.model, self.data = linear_model(self.y, 2, **architecture)
        self.evidence = linear_evidence(self.y, self.loadings, self.centre)
        self.variance = 1.0 / (1.0 + (self.loadings**2).sum(0) / VARIANCE)
        gain = self.variance[:, None] * self.loadings.T / VARIANCE
        self.mean = (self.y - self.centre) @ gain.T
        with torch.no_grad():
            for layer, weight, bias in (
                (self.model.profile, self.loadings, self.centre),
                (self.model.posterior_mean, gain, -gain @ self.centre),
                (self.model.posterior_log_variance, np.zeros((2, 8)), np.log(self.variance)),
            ):
                layer.weight.copy_(torch.tensor(weight))
                layer.bias.copy_(torch.tensor(bias))

    @torch.no_grad()
    def spoil(self, scale=0.7, shift=1.0, log_factor=1.0) -> "Linear":
        """Another encoder: posterior means scaled and moved, variances exp(log_factor) times."""
        self.model.posterior_mean.weight.mul_(scale)
        self.model.posterior_mean.bias.mul_(scale).add_(shift)
        self.model.posterior_log_variance.bias.add_(log_factor)
        return self


@pytest.fixture
def linear():
    return Linear()


def test_the_exact_posterior_gives_the_exact_evidence_from_one_sample(linear):
    for samples in (1, 10):
        found = importance_weighted_evidence(linear.model, linear.data, CPU, samples)
        np.testing.assert_allclose(found.log_p, linear.evidence, atol=1e-5)
        np.testing.assert_allclose(found.effective_samples, samples, rtol=1e-9)


def test_the_elbo_of_the_exact_posterior_is_the_evidence(linear):
    """To the Monte Carlo error of its reconstruction; its KL has none."""
    found = cell_elbo(linear.model, linear.data, CPU, draws=1000)
    error = (found.of_cells - linear.evidence).std() / np.sqrt(60)
    assert error < 0.01
    assert found.mean == pytest.approx(linear.evidence.mean(), abs=4 * error)
    closed = 0.5 * (linear.mean**2 + linear.variance - 1 - np.log(linear.variance))
    np.testing.assert_allclose(found.kl_dimensions, closed, rtol=1e-4, atol=1e-5)


def test_another_posterior_loses_its_divergence_from_the_exact_one(linear):
    spoilt = linear.spoil()
    mean = 0.7 * linear.mean + 1.0
    ratio = np.exp(1.0)
    lost = 0.5 * ((mean - linear.mean) ** 2 / linear.variance + ratio - 1 - np.log(ratio))
    found = cell_elbo(spoilt.model, linear.data, CPU, draws=4000)
    assert lost.sum(1).mean() > 3
    np.testing.assert_allclose(found.of_cells, linear.evidence - lost.sum(1), atol=0.6)
    assert found.mean == pytest.approx((linear.evidence - lost.sum(1)).mean(), abs=0.03)


def test_elbo_below_importance_weighted_below_exact_evidence_rising_with_samples(linear):
    linear.spoil(shift=0.7)
    bounds = [cell_elbo(linear.model, linear.data, CPU, draws=200).mean]
    effective = []
    for samples in (2, 8, 32, 128, 1024):
        found = importance_weighted_evidence(linear.model, linear.data, CPU, samples, seed=1)
        bounds.append(found.log_p.mean())
        assert (found.effective_samples >= 1 - 1e-9).all()
        assert (found.effective_samples <= samples).all()
        effective.append(found.effective_samples.mean() / samples)
    assert (np.diff(bounds) > 0.005).all()
    assert bounds[-1] < linear.evidence.mean() + 0.01
    assert bounds[-1] == pytest.approx(linear.evidence.mean(), abs=0.03)
    assert bounds[0] < linear.evidence.mean() - 2
    assert max(effective[1:]) < 0.4, "few samples of a bad posterior count"


@pytest.mark.parametrize("away", [0.3, 0.8])
def test_the_effective_sample_size_of_a_moved_posterior(linear, away):
    """Moved by d standard deviations, samples count exp(-d^2) each: E[w]^2 / E[w^2]."""
    at = Embedding(
        linear.mean + np.sqrt(linear.variance) * [away, 0.0],
        np.tile(linear.variance, (60, 1)),
        np.zeros(60),
        np.zeros(60),
    )
    found = importance_weighted_evidence(linear.model, linear.data, CPU, 4000, at=at)
    assert found.effective_samples.mean() / 4000 == pytest.approx(np.exp(-(away**2)), rel=0.03)
    np.testing.assert_allclose(found.log_p, linear.evidence, atol=0.1)


@torch.no_grad()
def test_the_evidence_under_a_mixture_prior_is_a_mixture_of_gaussians():
    """p(y) = sum_k w_k N(y; b + W m_k, W V_k W^T + v I)."""
    linear = Linear(**MIXTURE)
    linear.model.prior.weight.copy_(torch.tensor([0.5, 0.0, -1.0]))
    linear.model.prior.log_variance.copy_(torch.tensor([[-1.0, 0.5], [0.0, 0.0], [-0.5, -2.0]]))
    prior, exact = linear.model.prior_of_z(), []
    for log_weight, mean, log_variance in zip(
        *(part.double().numpy() for part in prior), strict=True
    ):
        loadings = linear.loadings * np.exp(0.5 * log_variance)
        centre = linear.centre + linear.loadings @ mean
        exact.append(log_weight + linear_evidence(linear.y, loadings, centre))
    exact = logsumexp(exact, axis=0)
    linear.spoil(scale=1.0, shift=0.0, log_factor=0.7)
    found = importance_weighted_evidence(linear.model, linear.data, CPU, 3000)
    assert np.abs(exact - linear.evidence).mean() > 0.2, "not that of the normal prior"
    assert np.abs(found.log_p - exact).mean() < 0.03
    assert cell_elbo(linear.model, linear.data, CPU, 100).mean < exact.mean() - 0.1


@torch.no_grad()
def test_the_evidence_with_a_latent_library_size_is_its_integral(data):
    """Where z is idle, one integral over log s is left."""
    model = small_model(data, **LATENT_SIZE)
    for layer in (model.profile, model.posterior_mean, model.posterior_log_variance):
        layer.weight.zero_()
    model.posterior_mean.bias.zero_()
    model.posterior_log_variance.bias.zero_()
    model.size_posterior.bias.copy_(torch.tensor([0.1, np.log(0.15)]))
    at = embed(model, data, CPU)
    ((_, x, likelihood),) = decoded(model, data, at, CPU)
    shares = likelihood.mean.numpy() / np.exp(at.log_size)[:, None]
    m, sd = data.log_offset.mean(), data.log_offset.std()
    grid = np.linspace(m - 8 * sd, m + 8 * sd, 801)
    log_joint = norm(m, sd).logpdf(grid) + np.log(grid[1] - grid[0])
    mu = np.exp(grid)[:, None] * shares[0]
    exact = [logsumexp(log_joint + nbinom.logpmf(n, 1.0, 1 / (1 + mu)).sum(1)) for n in x]
    found = importance_weighted_evidence(model, data, CPU, 2000)
    np.testing.assert_allclose(found.log_p, exact, atol=0.1)
    assert found.log_p.mean() == pytest.approx(np.mean(exact), abs=0.01)
    assert cell_elbo(model, data, CPU, 100).mean < np.mean(exact) - 0.1


def test_training_reaches_the_maximum_likelihood_of_probabilistic_pca(tmp_path):
    """Tipping & Bishop 1999: for this variance v it is W = U (L - v I)^(1/2), b the mean.

    No W and b can exceed it. What training may lack is a tenth of what the true W and b lack on
    average, parameters / (2 cells): its error is then of no consequence beside the sampling error.
    """
    rng = np.random.default_rng(0)
    true_loadings, true_centre = rng.normal(0, 1, (8, 2)), rng.normal(1, 0.5, 8)
    y = draw_linear(300, true_loadings, true_centre, seed=1)
    model, data = linear_model(y, 2)
    plan = TrainingPlan(
        max_steps=1000,
        batch_size=300,
        learning_rate=0.02,
        weight_decay=0.0,
        beta=1.0,
        kl_warmup="constant",
        kl_warmup_steps=0,
        kl_cycles=1,
        free_bits=0.0,
        validation_interval=50,
        patience=1000,
        min_improvement=0.0,
        checkpoint_seconds=1e9,
        seed=0,
    )
    for learning_rate, steps in ((0.02, 1000), (0.005, 500), (0.001, 500)):
        gentler = replace(plan, learning_rate=learning_rate, max_steps=steps)
        train(model, data, data, gentler, CPU, tmp_path / "c")
    values, vectors = np.linalg.eigh(np.cov(y.T, bias=True))
    axes = vectors[:, -2:]
    best = linear_evidence(y, axes * np.sqrt(values[-2:] - VARIANCE), y.mean(0)).mean()
    loadings = model.profile.weight.detach().double().numpy()
    reached = linear_evidence(y, loadings, model.profile.bias.detach().double().numpy()).mean()
    parameters = 8 * 2 - 1 + 8  # of W but for its rotation, and of b
    assert reached < best
    assert reached > best - 0.1 * parameters / (2 * 300)
    assert best - linear_evidence(y, true_loadings, true_centre).mean() > 0.02
    cosines = np.linalg.svd(np.linalg.qr(loadings)[0].T @ axes)[1]
    assert cosines.min() > 0.999
    # Diagonal posteriors turn W until they are exact: its columns are the principal axes.
    elbo = cell_elbo(model, data, CPU, 200)
    assert elbo.mean == pytest.approx(reached, abs=0.02)
    found = importance_weighted_evidence(model, data, CPU, 50)
    assert found.log_p.mean() == pytest.approx(reached, abs=0.002)
    assert found.effective_samples.mean() > 45


def test_refinement_finds_nothing_to_gain_on_the_exact_posterior(linear):
    """The gap is measured with draws that chose nothing: by luck of the draws there is none."""
    found = refine(linear.model, linear.data, CPU, 50, 0.02, draws=256)
    assert -0.003 < found.gap.mean() < 0.001
    assert (found.gap == 0).mean() > 0.5
    np.testing.assert_allclose(found.amortized, linear.evidence, atol=0.5)


def test_refinement_brings_a_spoilt_posterior_back(linear):
    linear.spoil(log_factor=1.5)
    found = refine(linear.model, linear.data, CPU, 800, 0.01)
    assert found.gap.min() > 1.0
    away = np.abs(found.embedding.mean - linear.mean) / np.sqrt(linear.variance)
    assert away.mean() < 0.12
    np.testing.assert_allclose(found.embedding.variance.mean(0), linear.variance, rtol=0.2)
    fresh = cell_elbo(linear.model, linear.data, CPU, 500, seed=9, at=found.embedding)
    assert fresh.mean == pytest.approx(linear.evidence.mean(), abs=0.05)
    before = cell_elbo(linear.model, linear.data, CPU, 500, seed=9).mean
    assert found.gap.mean() == pytest.approx(linear.evidence.mean() - before, rel=0.05)


@pytest.mark.parametrize(
    "architecture",
    [{}, LATENT_SIZE, MIXTURE, {**LATENT_SIZE, **MIXTURE}, {"likelihood": "gaussian"}],
)
def test_the_refined_elbo_is_that_of_the_refined_posterior_and_not_lower(data, architecture):
    """Over the draws that choose, no cell loses; the ELBOs returned are of draws of their own."""
    model = small_model(data, **architecture)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = refine(model, data, CPU, 40, 0.05)
    again = cell_elbo(model, data, CPU, 16, seed=2, at=found.embedding)
    np.testing.assert_allclose(found.refined, again.of_cells, rtol=1e-5)
    np.testing.assert_allclose(found.amortized, cell_elbo(model, data, CPU, 16, seed=2).of_cells)
    np.testing.assert_array_equal(found.gap, found.refined - found.amortized)
    choosing = [cell_elbo(model, data, CPU, 16, at=at).of_cells for at in (None, found.embedding)]
    assert (choosing[1] >= choosing[0] - 1e-4).all()
    fresh = [cell_elbo(model, data, CPU, 100, seed=5, at=at).mean for at in (None, found.embedding)]
    assert fresh[1] - fresh[0] == pytest.approx(found.gap.mean(), abs=0.2)
    assert fresh[1] > fresh[0] + 0.05
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the model stays as it was"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_latent_library_size_is_refined_too(data):
    model = small_model(data, **LATENT_SIZE)
    with torch.no_grad():
        model.size_posterior.bias[0] += 0.7
    before, found = embed(model, data, CPU), refine(model, data, CPU, 100, 0.05)
    off = np.abs(before.log_size - data.log_offset).mean()
    assert off == pytest.approx(0.7, abs=1e-3)
    assert np.abs(found.embedding.log_size - data.log_offset).mean() < 0.4
    assert (found.embedding.log_size_variance != before.log_size_variance).all()


def test_a_cell_that_does_not_gain_keeps_the_encoders_posterior(linear):
    before = fields(embed(linear.model, linear.data, CPU))
    ruinous = refine(linear.model, linear.data, CPU, 3, 50.0)
    assert (ruinous.gap == 0).all()
    for kept, own in zip(fields(ruinous.embedding), before, strict=True):
        np.testing.assert_array_equal(kept, own)
    some = refine(linear.model, linear.data, CPU, 20, 0.05)
    stayed = some.gap == 0
    assert 0 < stayed.sum() < 60
    np.testing.assert_array_equal(some.embedding.mean[stayed], before[0][stayed])
    assert (some.embedding.mean[~stayed] != before[0][~stayed]).all()


def test_refined_variances_stay_in_the_models_bounds():
    """Millions of counts would fix the library size to 1e-3; the encoder's variance ends at e^-10.

    Otherwise refinement repairs what the bound costs and not what the encoder does.
    """
    data = simulate(20, 12, seed=2, depth=3e6, loading=0.0, theta=1e6).data()
    model = small_model(data, likelihood="poisson", **LATENT_SIZE)
    with torch.no_grad():
        for layer in (model.profile, model.posterior_mean, model.posterior_log_variance):
            layer.weight.zero_()
        model.size_posterior.bias[1] = -9.5
    found = refine(model, data, CPU, 100, 0.05)
    assert found.gap.max() > 5
    for variance in (found.embedding.variance, found.embedding.log_size_variance):
        assert (variance >= np.exp(-10.0) * 0.999).all()
        assert (variance <= np.exp(5.0) * 1.001).all()
