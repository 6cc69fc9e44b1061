"""The negative binomial against scipy, against mpmath and against itself."""

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import nbinom, poisson

from omics_vae.likelihoods import (
    SMALLEST_P,
    nb_deviance,
    nb_log_likelihood,
    nb_tails,
    nb_two_sided_p,
)


def grid(x, mu, theta):
    """All combinations, flat."""
    return [values.ravel() for values in np.meshgrid(x, mu, theta, indexing="ij")]


WIDE = grid(
    np.array([0, 1, 2, 5, 30, 1e3, 1e4, 1e6]),
    10.0 ** np.arange(-8, 7, 2),
    10.0 ** np.arange(-4, 9, 2),
)
# What the model can meet: theta within its bounds, and counts of single cells.
MODEL = grid(
    np.array([0, 1, 2, 5, 30, 1e3, 1e4]), 10.0 ** np.arange(-8, 5, 2), 10.0 ** np.arange(-4, 5)
)


def log_likelihood(x, mu, theta, dtype=torch.float64):
    x, mu, theta = (torch.as_tensor(v, dtype=torch.float64) for v in (x, mu, theta))
    return nb_log_likelihood(x.to(dtype), mu.log().to(dtype), theta.log().to(dtype)).numpy()


def exact_log_pmf(x, mu, theta):
    """The textbook formula with 50 digits."""
    with mpmath.workdps(50):
        x, mu, theta = (mpmath.mpf(float(v)) for v in (x, mu, theta))
        return (
            mpmath.loggamma(x + theta)
            - mpmath.loggamma(theta)
            - mpmath.loggamma(x + 1)
            - theta * mpmath.log1p(mu / theta)
            - x * mpmath.log1p(theta / mu)
        )


@pytest.mark.parametrize("mu", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("theta", [0.3, 2.0, 19.9, 20.1, 1e4])
def test_probabilities_sum_to_one(mu, theta):
    x = np.arange(5000)
    assert np.exp(log_likelihood(x, mu, theta)).sum() == pytest.approx(1.0, abs=1e-6)


def test_mean_and_variance_are_those_of_the_parameterization():
    x, mu, theta = np.arange(5000.0), 12.0, 3.0
    p = np.exp(log_likelihood(x, mu, theta))
    assert (p * x).sum() == pytest.approx(mu, rel=1e-6)
    assert (p * (x - mu) ** 2).sum() == pytest.approx(mu + mu**2 / theta, rel=1e-6)


def test_log_likelihood_equals_scipy_where_scipy_is_exact():
    x, mu, theta = WIDE
    # scipy takes the probability theta / (theta + mu), which has no digits left beyond this ratio.
    fine = theta / mu < 1e6
    x, mu, theta = x[fine], mu[fine], theta[fine]
    expected = nbinom.logpmf(x, theta, theta / (theta + mu))
    # 4e-7: the term that Stirling's series leaves out, at theta = 20.
    np.testing.assert_allclose(log_likelihood(x, mu, theta), expected, rtol=1e-9, atol=4e-7)


def test_log_likelihood_equals_fifty_digits_from_1e_minus_8_to_1e8():
    expected = np.array([float(exact_log_pmf(*row)) for row in zip(*WIDE, strict=True)])
    np.testing.assert_allclose(log_likelihood(*WIDE), expected, rtol=1e-9, atol=4e-7)


def test_nothing_jumps_where_stirlings_series_takes_over():
    near = grid([0, 1, 5, 30, 1e3], [0.01, 1.0, 100.0], [5.5, 10.0, 19.99, 20.01, 25.0])
    expected = np.array([float(exact_log_pmf(*row)) for row in zip(*near, strict=True)])
    np.testing.assert_allclose(log_likelihood(*near), expected, rtol=1e-12, atol=4e-7)


def test_the_unused_branch_does_not_poison_the_gradient():
    """exp(-60) squared is 0 in float32, and Stirling's series divides by it."""
    x, log_mu = np.array([0.0, 3.0]), np.zeros(2, dtype=np.float32)
    found = with_gradients(
        nb_log_likelihood, x, log_mu, np.full(2, -60.0, dtype=np.float32), torch.float32
    )
    assert all(np.isfinite(values).all() for values in found)


def test_theta_to_infinity_is_the_poisson():
    x, mu, _ = grid([0, 1, 7, 100], [0.01, 1.0, 50.0], [1.0])
    found = log_likelihood(x, mu, np.full(len(x), 1e10))
    np.testing.assert_allclose(found, poisson.logpmf(x, mu), rtol=1e-6, atol=1e-6)


def with_gradients(function, x, log_mu, log_theta, dtype):
    """Values and gradients at inputs that are exact in float32."""
    inputs = [torch.tensor(v).to(dtype).requires_grad_() for v in (log_mu, log_theta)]
    value = function(torch.tensor(x).to(dtype), *inputs)
    value.sum().backward()
    return [v.detach().double().numpy() for v in (value, inputs[0].grad, inputs[1].grad)]


def textbook(x, log_mu, log_theta):
    mu, theta = log_mu.exp(), log_theta.exp()
    return (
        torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
        + theta * (log_theta - torch.log(theta + mu))
        + x * (log_mu - torch.log(theta + mu))
    )


def test_float32_agrees_with_float64_and_stays_finite():
    x, mu, theta = WIDE
    logs = np.log(mu).astype(np.float32), np.log(theta).astype(np.float32)
    single = with_gradients(nb_log_likelihood, x, *logs, torch.float32)
    assert all(np.isfinite(values).all() for values in single)
    x, mu, theta = MODEL
    logs = np.log(mu).astype(np.float32), np.log(theta).astype(np.float32)
    single = with_gradients(nb_log_likelihood, x, *logs, torch.float32)
    double = with_gradients(nb_log_likelihood, x, *logs, torch.float64)
    # 0.02 nats is lgamma's last digit at a count of 10,000; 2e-4 nats up to 1,000.
    np.testing.assert_allclose(single[0], double[0], rtol=2e-6, atol=0.02)
    small = x <= 1000
    np.testing.assert_allclose(single[0][small], double[0][small], rtol=2e-6, atol=2e-3)
    for found, expected in zip(single[1:], double[1:], strict=True):
        np.testing.assert_allclose(found, expected, rtol=5e-4, atol=5e-4)


def test_float32_keeps_the_poisson_limit():
    x, mu, _ = grid([0, 1, 7, 100], [0.01, 1.0, 50.0], [1.0])
    found = log_likelihood(x, mu, np.full(len(x), 1e8), torch.float32)
    np.testing.assert_allclose(found, poisson.logpmf(x, mu), rtol=1e-5, atol=1e-4)


def test_gradients_equal_those_of_the_textbook_formula():
    x, mu, theta = grid([0, 1, 5, 300], [1e-4, 0.1, 3.0, 1e3], [0.01, 1.0, 19.0, 21.0, 5e3])
    logs = np.log(mu), np.log(theta)
    found = with_gradients(nb_log_likelihood, x, *logs, torch.float64)
    expected = with_gradients(textbook, x, *logs, torch.float64)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6)


def test_tails_equal_scipy_and_overlap_in_one_count():
    x, mu, theta = MODEL
    lower, upper = nb_tails(x, mu, theta)
    p = theta / (theta + mu)
    np.testing.assert_allclose(lower, nbinom.cdf(x, theta, p), atol=1e-9)
    np.testing.assert_allclose(upper, nbinom.sf(x - 1, theta, p), atol=1e-8)
    pmf = np.exp(log_likelihood(x, mu, theta))
    np.testing.assert_allclose(lower + upper - pmf, 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "mu", "theta", "lower_tail"),
    [
        (0, 1e3, 50.0, True),
        (10, 1e3, 100.0, True),
        (3, 500.0, 1e4, True),
        (5, 690.0, 1e4, True),
        (300, 10.0, 5.0, False),
        (20, 0.01, 10.0, False),
        (60, 1e-3, 1e4, False),
    ],
)
def test_far_tails_lose_no_digits(x, mu, theta, lower_tail):
    counts = range(x + 1) if lower_tail else range(x, x + 2000)
    with mpmath.workdps(50):
        tail = mpmath.fsum(mpmath.exp(exact_log_pmf(k, mu, theta)) for k in counts)
    assert tail < 1e-40
    found = nb_tails(x, mu, theta)[0 if lower_tail else 1]
    assert float(found / tail) == pytest.approx(1.0, rel=1e-9)
    assert nb_two_sided_p(x, mu, theta) == pytest.approx(float(2 * tail), rel=1e-9)


def test_a_tail_beyond_float64_counts_as_the_smallest_p():
    assert nb_two_sided_p(100, 1e4, 1e3) == SMALLEST_P
    assert nb_two_sided_p(10**6, 1e-8, 1e4) == SMALLEST_P


@pytest.mark.parametrize(("mu", "theta"), [(0.05, 1.0), (2.0, 0.5), (40.0, 10.0)])
def test_two_sided_p_is_valid_under_the_null(mu, theta):
    """P(p <= t) <= t exactly, summed over all counts, at every t that p can take."""
    x = np.arange(20_000)
    p, pmf = nb_two_sided_p(x, mu, theta), nbinom.pmf(x, theta, theta / (theta + mu))
    order = np.argsort(p)
    assert (np.cumsum(pmf[order]) <= p[order] + 1e-9).all()
    # ... and not wastefully so: at mu = 40 the counts are nearly continuous.
    if mu == 40.0:
        drawn = np.random.default_rng(0).negative_binomial(theta, theta / (theta + mu), 20_000)
        assert (nb_two_sided_p(drawn, mu, theta) <= 0.1).mean() == pytest.approx(0.09, abs=0.015)


def test_deviance_is_twice_the_log_likelihood_lost():
    x, mu, theta = MODEL
    found = nb_deviance(x, mu, theta)
    assert (found >= 0).all()
    assert (nb_deviance(mu, mu, theta) == 0).all()
    # Next to its zero, where rounding could make it negative.
    assert (nb_deviance(mu * (1 + 1e-9), mu, theta) >= 0).all()
    saturated = log_likelihood(x, np.maximum(x, 1e-300), theta)
    # The two formulas share their log-gamma terms, so Stirling's remainder cancels.
    expected = 2 * (saturated - log_likelihood(x, mu, theta))
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-6)
    x, mu, theta = (np.array(v) for v in ([1.0, 7.0, 50.0], [3.0, 2.0, 80.0], [0.7, 5.0, 30.0]))
    scipy = nbinom.logpmf(x, theta, theta / (theta + x)) - nbinom.logpmf(
        x, theta, theta / (theta + mu)
    )
    np.testing.assert_allclose(nb_deviance(x, mu, theta), 2 * scipy, rtol=1e-9)
