"""Gene p-values: right in the far tail, uniform under their distribution, BY within a cell."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from gene_tests import (
    SHIFTS,
    HeldOutTheta,
    benjamini_yekutieli,
    log_lower_tail,
    log_two_sided_p,
    log_upper_tail,
    randomised_p,
    shifted_theta,
    z_score,
)
from omics_vae.likelihoods import Gaussian, NegativeBinomial, Poisson, ZeroInflatedNB


def tensors(*values):
    return [torch.tensor(np.log(np.atleast_2d(value)), dtype=torch.float64) for value in values]


def log_p(x, likelihood) -> np.ndarray:
    return log_two_sided_p(np.atleast_2d(np.asarray(x, dtype=np.float64)), likelihood)[0]


def summed_tail(x: float, mu: float, theta: float, upper: bool) -> float:
    """log P by adding up the logarithms of one probability after the other."""
    k = np.arange(x, x + 40_000) if upper else np.arange(0, x + 1)
    return float(special.logsumexp(stats.nbinom.logpmf(k, theta, theta / (theta + mu))))


def test_above_the_underflow_it_is_the_p_of_the_likelihood():
    rng = np.random.default_rng(0)
    mu, theta = rng.lognormal(1, 2, (40, 50)), rng.lognormal(0, 1.5, 50)
    x = rng.poisson(rng.gamma(theta, mu / theta)).astype(np.float64)
    nb = NegativeBinomial(*tensors(mu, theta))
    np.testing.assert_allclose(log_two_sided_p(x, nb), -nb.surprise(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "mu", "theta"),
    [(3000, 1.0, 4.0), (20_000, 10.0, 0.5), (4000, 50.0, 1000.0), (900, 0.01, 2.0)],
)
def test_far_above_the_mean_no_digit_is_lost(x, mu, theta):
    ours = log_p([x], NegativeBinomial(*tensors(mu, theta)))[0]
    assert ours == pytest.approx(np.log(2) + summed_tail(x, mu, theta, True), rel=1e-8)
    assert ours < -280 * np.log(10) or (x, mu) == (20_000, 10.0)


@pytest.mark.parametrize(("x", "mu", "theta"), [(10, 2000.0, 1e4), (0, 5000.0, 1e5), (9, 3e3, 1e4)])
def test_far_below_the_mean_no_digit_is_lost(x, mu, theta):
    ours = log_p([x], NegativeBinomial(*tensors(mu, theta)))[0]
    assert ours == pytest.approx(np.log(2) + summed_tail(x, mu, theta, False), rel=1e-9)
    assert ours < -280 * np.log(10)


def test_the_far_tail_meets_the_near_one_where_scipy_still_has_digits():
    x, mu, theta = np.array([30.0, 200.0, 900.0]), np.array([2.0, 5.0, 20.0]), np.full(3, 3.0)
    expected = stats.nbinom.logsf(x - 1, theta, theta / (theta + mu))
    np.testing.assert_allclose(log_upper_tail(x, mu, theta), expected, rtol=1e-9)


def test_so_does_the_lower_one():
    x, mu, theta = np.array([0.0, 4.0, 150.0]), np.array([50.0, 90.0, 2000.0]), np.full(3, 3.0)
    expected = stats.nbinom.logcdf(x, theta, theta / (theta + mu))
    np.testing.assert_allclose(log_lower_tail(x, mu, theta), expected, rtol=1e-9)


@pytest.mark.parametrize("x", [3000.0, 5.0])
def test_a_poisson_keeps_its_digits_too(x):
    mu = 10.0 if x > 10 else 900.0
    k = np.arange(x, x + 2000) if x > mu else np.arange(0, x + 1)
    expected = np.log(2) + special.logsumexp(stats.poisson.logpmf(k, mu))
    assert log_p([x], Poisson(*tensors(mu)))[0] == pytest.approx(expected, rel=1e-7)


def test_lost_counts_make_a_high_count_rarer_and_a_low_one_common():
    """Of a ZINB with a third lost: 2/3 of the NB's upper tail; below, at least the lost third."""
    logit = torch.tensor([[np.log(0.5)]])
    high = log_p([3000], ZeroInflatedNB(*tensors(1.0, 4.0), logit))[0]
    assert high == pytest.approx(np.log(2 * 2 / 3) + summed_tail(3000, 1.0, 4.0, True), rel=1e-9)
    low = log_p([1], ZeroInflatedNB(*tensors(5000.0, 1e5), logit))[0]
    assert low == pytest.approx(np.log(2 / 3), rel=1e-6)


def test_a_gaussian_far_out_has_the_logarithm_of_its_tail():
    value = log_p([60.0], Gaussian(torch.zeros(1, 1).double(), torch.ones(1, 1).double()))[0]
    assert value == pytest.approx(np.log(2) + stats.norm.logsf(60.0), rel=1e-9)


def test_the_z_score_is_the_normal_value_of_the_same_p():
    p = np.array([1.0, 0.05, 0.05, 1e-10])
    up = np.array([True, True, False, True])
    np.testing.assert_allclose(
        z_score(np.log(p), up), [0.0, 1.959964, -1.959964, 6.466951], atol=1e-6
    )
    assert z_score(np.array([-5000.0]), np.array([True]))[0] == pytest.approx(99.94, abs=0.1)


def test_q_values_are_those_of_scipy_and_do_not_underflow():
    rng = np.random.default_rng(1)
    p = rng.random((5, 200)) ** 4
    expected = [stats.false_discovery_control(row, method="by") for row in p]
    np.testing.assert_allclose(np.exp(benjamini_yekutieli(np.log(p))), expected, rtol=1e-12)
    far = benjamini_yekutieli(np.array([[-2000.0, -1.0]]))
    assert far[0, 0] == pytest.approx(-2000.0 + np.log(2 * 1.5))


@pytest.mark.parametrize("mu", [0.05, 3.0, 300.0])
def test_randomised_p_values_are_uniform_however_rare_the_gene(mu):
    rng = np.random.default_rng(2)
    x = rng.poisson(rng.gamma(2.0, mu / 2.0, (400, 100))).astype(np.float64)
    p = randomised_p(x, NegativeBinomial(*tensors(np.full((400, 100), mu), np.full(100, 2.0))), rng)
    assert stats.kstest(p.ravel(), "uniform").pvalue > 1e-3
    assert (p <= 1e-3).mean() == pytest.approx(1e-3, abs=6e-4)


def dispersed(n: int, seed: int = 3):
    """Counts of 300 genes with theta about 20, and a model that says theta = 1."""
    rng = np.random.default_rng(seed)
    true = np.random.default_rng(0).lognormal(np.log(20.0), 0.4, 300)
    mu = np.full((n, 300), 400.0)
    x = rng.poisson(rng.gamma(true, mu / true)).astype(np.float64)
    return true, x, NegativeBinomial(*tensors(mu, np.ones(300)))


def test_theta_follows_held_out_observations_and_leans_on_the_other_genes():
    true, x, model = dispersed(12)
    found = HeldOutTheta(300)
    for rows in (slice(0, 5), slice(5, 12)):
        found.add(x[rows], model[rows])
    w = found.posterior()
    np.testing.assert_allclose(w.sum(0), 1.0)
    shift = (w * SHIFTS[:, None]).sum(0)
    assert np.exp(np.median(shift)) == pytest.approx(20.0, rel=0.12)
    assert (shift - np.log(true)).std() < np.log(true).std(), "better than one theta for all"


def test_an_outlier_is_left_out_of_theta():
    _, x, model = dispersed(12)
    clean = HeldOutTheta(300)
    clean.add(x, model)
    x[0, :20] *= 20
    spoiled, mended = HeldOutTheta(300), HeldOutTheta(300)
    spoiled.add(x, model)
    mended.add(x, model, spoiled.posterior())

    def mean(found):
        return (found.posterior() * SHIFTS[:, None]).sum(0)[:20]

    assert (mean(clean) - mean(spoiled)).mean() > 0.8
    assert (mean(clean) - mean(mended)).mean() == pytest.approx(0.0, abs=0.15)


def test_p_values_know_that_theta_is_uncertain():
    """From 12 observations; on 75,000 others of the same genes the tail is what it should be."""
    _, x, model = dispersed(12)
    found = HeldOutTheta(300)
    found.add(x, model)
    w = found.posterior()
    _, others, model = dispersed(250, seed=4)
    p = randomised_p(others, model, np.random.default_rng(5), w)
    assert stats.kstest(p.ravel(), "uniform").statistic < 0.01
    assert (p <= 1e-2).mean() / 1e-2 == pytest.approx(1.0, abs=0.2)
    assert (p <= 1e-3).mean() / 1e-3 == pytest.approx(1.0, abs=0.5)
    plugged = shifted_theta(model, float(np.median((w * SHIFTS[:, None]).sum(0))))
    assert (randomised_p(others, plugged, np.random.default_rng(5)) <= 1e-3).mean() > 2e-3
    whole = np.exp(log_two_sided_p(others, model, w))
    assert (whole <= 1e-3).mean() <= (p <= 1e-3).mean()
    assert np.abs(np.log(whole) - np.log(p)).mean() < 0.1, "counts of 400 are nearly continuous"
