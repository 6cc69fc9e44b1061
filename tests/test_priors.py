"""Priors: densities that integrate to one, divergences in closed form and by Monte Carlo."""

import numpy as np
import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)

from omics_vae.priors import (
    GaussianMixture,
    Mixture,
    StandardNormal,
    VampPrior,
    gaussian_kl,
    gaussian_log_density,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def some_mixture(n_components=3, n_latent=2, seed=1):
    """Unequal weights, means and variances, float64."""
    return Mixture(
        torch.log_softmax(randn(n_components, seed=seed), 0),
        2.0 * randn(n_components, n_latent, seed=seed + 1),
        randn(n_components, n_latent, seed=seed + 2) - 0.5,
    )


def torch_mixture(mixture):
    parts = Normal(mixture.mean, torch.exp(0.5 * mixture.log_variance))
    return MixtureSameFamily(Categorical(logits=mixture.log_weight), Independent(parts, 1))


def no_encoder(_):
    raise AssertionError("this prior does not encode")


def test_gaussian_kl_equals_torch_distributions():
    mean, log_variance = 3 * randn(50, 4), 2 * randn(50, 4, seed=1)
    prior_mean, prior_log_variance = randn(4, seed=2), randn(4, seed=3)
    q = Normal(mean, torch.exp(0.5 * log_variance))
    torch.testing.assert_close(
        gaussian_kl(mean, log_variance), kl_divergence(q, Normal(0.0, 1.0).expand((50, 4)))
    )
    p = Normal(prior_mean, torch.exp(0.5 * prior_log_variance)).expand((50, 4))
    found = gaussian_kl(mean, log_variance, prior_mean, prior_log_variance)
    torch.testing.assert_close(found, kl_divergence(q, p))


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 0.2), (1.3, 1.0), (-2.0, 0.05), (0.5, 3.0)])
@pytest.mark.parametrize(("prior_mean", "prior_variance"), [(0.0, 1.0), (-0.7, 4.0), (2.0, 0.3)])
def test_gaussian_kl_equals_monte_carlo(mean, variance, prior_mean, prior_variance):
    z = mean + np.sqrt(variance) * np.random.default_rng(0).standard_normal(200_000)

    def log_density(m, v):
        return -0.5 * ((z - m) ** 2 / v + np.log(v) + np.log(2 * np.pi))

    log_ratio = log_density(mean, variance) - log_density(prior_mean, prior_variance)
    q_and_p = [mean, np.log(variance), prior_mean, np.log(prior_variance)]
    found = float(gaussian_kl(*(torch.tensor(v, dtype=torch.float64) for v in q_and_p)))
    error = log_ratio.std() / np.sqrt(len(z))
    assert found == pytest.approx(log_ratio.mean(), abs=4 * error + 1e-9)


def test_gaussian_kl_is_zero_at_the_prior_and_positive_elsewhere():
    assert float(gaussian_kl(torch.zeros(()), torch.zeros(()))) == 0.0
    at = torch.tensor([1.5, -2.0]), torch.tensor([0.3, -1.0])
    assert (gaussian_kl(*at, *at) == 0).all()
    mean, log_variance = torch.meshgrid(
        torch.linspace(-3, 3, 41), torch.linspace(-10, 5, 61), indexing="ij"
    )
    assert (gaussian_kl(mean, log_variance) >= 0).all()


@pytest.mark.parametrize("log_variance", [1e-3, -1e-3, 3e-3])
def test_float32_keeps_its_digits_next_to_the_prior(log_variance):
    found = gaussian_kl(torch.zeros(()), torch.tensor(log_variance))
    expected = 0.5 * (np.expm1(log_variance) - log_variance)
    # exp(v) - 1 in float32 would leave an error of 6e-8 in 2.5e-7.
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_log_densities_equal_torch_distributions():
    mixture, z = some_mixture(), 2 * randn(40, 2, seed=9)
    torch.testing.assert_close(mixture.log_prob(z), torch_mixture(mixture).log_prob(z))
    one = Normal(0.3, 0.5).log_prob(z)
    mean, log_variance = torch.tensor(0.3), 2 * torch.tensor(0.5).log()
    torch.testing.assert_close(gaussian_log_density(z, mean, log_variance).float(), one.float())


LINE = torch.linspace(-12, 12, 601, dtype=torch.float64)
STEP = float(LINE[1] - LINE[0])


@pytest.mark.parametrize("n_components", [1, 3])
def test_the_density_integrates_to_one(n_components):
    line = some_mixture(n_components, n_latent=1)
    assert float(line.log_prob(LINE[:, None]).exp().sum() * STEP) == pytest.approx(1, abs=1e-9)
    plane = torch.cartesian_prod(LINE, LINE)
    density = some_mixture(n_components, n_latent=2).log_prob(plane).exp()
    assert float(density.sum() * STEP**2) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("n_components", [1, 3])
def test_marginals_are_the_integrals_over_the_other_dimension(n_components):
    """Those of ``log_marginals``, and those that ``take`` keeps."""
    mixture = some_mixture(n_components, n_latent=2)
    joint = mixture.log_prob(torch.cartesian_prod(LINE, LINE)).exp().reshape(601, 601)
    marginals = mixture.log_marginals(torch.stack([LINE, LINE], 1)).exp()
    for j in (0, 1):
        expected = joint.sum(1 - j) * STEP
        torch.testing.assert_close(marginals[:, j], expected, rtol=1e-8, atol=1e-12)
        taken = mixture.take([j]).log_prob(LINE[:, None]).exp()
        torch.testing.assert_close(taken, expected, rtol=1e-8, atol=1e-12)


def test_take_keeps_the_order_that_is_asked_for():
    mixture, z = some_mixture(n_latent=4), randn(30, 4, seed=5)
    taken = mixture.take([3, 1])
    torch.testing.assert_close(
        taken.log_prob(z[:, [3, 1]]), mixture.take([1, 3]).log_prob(z[:, [1, 3]])
    )
    torch.testing.assert_close(
        taken.log_marginals(z[:, [3, 1]]), mixture.log_marginals(z)[:, [3, 1]]
    )
    nothing = mixture.take([])
    torch.testing.assert_close(nothing.log_prob(z[:, []]), torch.zeros(30, dtype=torch.float64))


def test_a_mixture_of_one_component_is_the_gaussian():
    """Its divergence is the closed form, whatever the sample; its density the Gaussian's."""
    mixture, mean, log_variance = some_mixture(1, 3), randn(20, 3, seed=5), randn(20, 3, seed=6)
    whole, dimensions = mixture.kl(mean, log_variance, torch.full((20, 3), torch.nan))
    expected = gaussian_kl(mean, log_variance, mixture.mean, mixture.log_variance)
    torch.testing.assert_close(dimensions, expected)
    torch.testing.assert_close(whole, expected.sum(1))
    z = randn(20, 3, seed=7)
    density = gaussian_log_density(z, mixture.mean, mixture.log_variance)
    torch.testing.assert_close(mixture.log_prob(z), density.sum(1))
    torch.testing.assert_close(mixture.log_marginals(z), density)


def draws_of(mean, log_variance, n, seed=3):
    """(cells * n, latent): n samples of every cell's posterior."""
    noise = randn(len(mean) * n, mean.shape[1], seed=seed)
    return mean.repeat(n, 1) + torch.exp(0.5 * log_variance).repeat(n, 1) * noise


def mean_and_error(kl, n):
    """Mean over n draws and its standard error, of each cell."""
    kl = kl.reshape(n, -1, *kl.shape[1:])
    return kl.mean(0), kl.std(0) / np.sqrt(n)


@pytest.mark.parametrize("n_components", [2, 5])
def test_alike_components_are_one_gaussian_in_the_mean_over_draws(n_components):
    """The Monte Carlo estimate of the divergence agrees with the closed form where both exist."""
    n, alike = 20_000, torch.zeros(n_components, 2, dtype=torch.float64)
    weights = torch.log_softmax(randn(n_components), 0)
    mean, log_variance = randn(6, 2, seed=5), randn(6, 2, seed=6)
    z = draws_of(mean, log_variance, n)
    estimates = Mixture(weights, alike, alike).kl(mean.repeat(n, 1), log_variance.repeat(n, 1), z)
    closed = gaussian_kl(mean, log_variance)
    for estimate, expected in zip(estimates, (closed.sum(1), closed), strict=True):
        found, error = mean_and_error(estimate, n)
        assert ((found - expected).abs() < 4.5 * error).all()


def test_the_divergence_from_a_mixture_equals_its_integral():
    """On a grid, KL(q || p) = sum q (log q - log p), of the whole and of each dimension."""
    n, mixture = 20_000, some_mixture(3, 2)
    mean, log_variance = randn(3, 2, seed=5), randn(3, 2, seed=6) - 1.0
    z = draws_of(mean, log_variance, n)
    estimates = mixture.kl(mean.repeat(n, 1), log_variance.repeat(n, 1), z)
    plane = torch.cartesian_prod(LINE, LINE)
    log_p, both = mixture.log_prob(plane), torch.stack([LINE, LINE], 1)
    whole, dimensions = [], []
    for m, v in zip(mean, log_variance, strict=True):
        log_q = gaussian_log_density(plane, m, v).sum(1)
        whole.append((log_q.exp() * (log_q - log_p)).sum() * STEP**2)
        log_q = gaussian_log_density(both, m, v)
        dimensions.append((log_q.exp() * (log_q - mixture.log_marginals(both))).sum(0) * STEP)
    for estimate, expected in zip(estimates, (whole, dimensions), strict=True):
        found, error = mean_and_error(estimate, n)
        assert ((found - torch.stack(expected)).abs() < 4.5 * error).all()


def test_the_standard_normal_has_no_parameter_and_its_kl_is_the_closed_form():
    prior = StandardNormal(3)
    assert list(prior.parameters()) == []
    assert prior.state_dict() == {}
    mean, log_variance = randn(5, 3).float(), randn(5, 3, seed=1).float()
    whole, dimensions = prior(no_encoder).kl(mean, log_variance, mean)
    torch.testing.assert_close(dimensions, gaussian_kl(mean, log_variance))
    torch.testing.assert_close(whole, dimensions.sum(1))
    z = randn(5, 3, seed=2).float()
    torch.testing.assert_close(prior(no_encoder).log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(1))


def test_the_learned_mixture_starts_even_and_all_of_it_learns():
    torch.manual_seed(0)
    prior = GaussianMixture(4, 2)
    mixture = prior(no_encoder)
    torch.testing.assert_close(mixture.log_weight.exp(), torch.full((4,), 0.25))
    torch.testing.assert_close(mixture.log_variance, torch.zeros(4, 2))
    assert len(torch.unique(mixture.mean)) == 8, "components that are alike stay alike"
    mixture.log_prob(randn(7, 2).float()).sum().backward()
    for parameter in prior.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert (parameter.grad != 0).any()


def test_no_component_of_the_learned_mixture_shrinks_to_a_point():
    prior = GaussianMixture(2, 1)
    with torch.no_grad():
        prior.log_variance.copy_(torch.tensor([[-100.0], [100.0]]))
        prior.weight.copy_(torch.tensor([0.0, -2.0]))
    mixture = prior(no_encoder)
    torch.testing.assert_close(mixture.log_variance, torch.tensor([[-5.0], [5.0]]))
    torch.testing.assert_close(mixture.log_weight.exp().sum(), torch.ones(()))


def test_the_vamp_prior_is_the_mixture_of_its_pseudo_cells_posteriors():
    torch.manual_seed(0)
    prior = VampPrior(3, 5)
    with torch.no_grad():
        prior.pseudo_cells.copy_(torch.rand(3, 5))
        prior.weight.copy_(torch.tensor([0.0, 1.0, -1.0]))
    mean_of, log_variance_of = torch.nn.Linear(5, 2), torch.nn.Linear(5, 2)
    mixture = prior(lambda cells: (mean_of(cells), log_variance_of(cells)))
    z = randn(20, 2).float()
    density = torch.zeros(20)
    weights = torch.softmax(prior.weight, 0)
    for weight, cell in zip(weights, prior.pseudo_cells, strict=True):
        q = Normal(mean_of(cell), torch.exp(0.5 * log_variance_of(cell)))
        density = density + weight * q.log_prob(z).sum(1).exp()
    torch.testing.assert_close(mixture.log_prob(z).exp(), density)
    mixture.log_prob(z).sum().backward()
    for parameter in prior.parameters():
        assert (parameter.grad != 0).any()
