"""Every likelihood against scipy, mpmath, its textbook formula, its samples and itself."""

from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import nbinom, norm, poisson

from omics_vae.likelihoods import (
    SMALLEST_P,
    Gaussian,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNB,
)


def grid(*values):
    """All combinations, flat."""
    return [v.ravel() for v in np.meshgrid(*values, indexing="ij")]


def tensors(*values, dtype=torch.float64):
    return [torch.tensor(np.asarray(v, dtype=np.float64)).to(dtype) for v in values]


def poisson_of(mu):
    return Poisson(*tensors(np.log(mu)))


def nb_of(mu, theta):
    return NegativeBinomial(*tensors(np.log(mu), np.log(theta)))


def zinb_of(mu, theta, pi):
    return ZeroInflatedNB(*tensors(np.log(mu), np.log(theta), np.log(pi) - np.log1p(-pi)))


def gaussian_of(mean, variance):
    return Gaussian(*tensors(mean, variance))


def scipy_nb(theta, mu):
    return nbinom(theta, theta / (theta + mu))


def scipy_zinb(mu, theta, pi):
    """ZINB from scipy's NB."""
    nb = scipy_nb(theta, mu)

    def logpmf(x):
        lost = np.where(x == 0, np.log(pi), -np.inf)
        return np.logaddexp(lost, np.log1p(-pi) + nb.logpmf(x))

    return SimpleNamespace(
        logpmf=logpmf,
        cdf=lambda x: np.where(x < 0, 0.0, pi + (1.0 - pi) * nb.cdf(x)),
        sf=lambda x: np.where(x < 0, 1.0, (1.0 - pi) * nb.sf(x)),
    )


# Distributions of counts, each with scipy's.
COUNTS = {
    **{f"poisson-{mu:g}": (poisson_of(mu), poisson(mu)) for mu in (0.01, 1.0, 30.0)},
    **{
        f"nb-{mu:g}-{theta:g}": (nb_of(mu, theta), scipy_nb(theta, mu))
        for mu in (0.01, 1.0, 30.0)
        for theta in (0.3, 2.0, 1e4)
    },
    **{
        f"zinb-{mu:g}-{pi:g}": (zinb_of(mu, 2.0, pi), scipy_zinb(mu, 2.0, pi))
        for mu in (0.01, 1.0, 30.0)
        for pi in (0.001, 0.2, 0.9)
    },
}
of_counts = pytest.mark.parametrize(
    ("likelihood", "scipy"), list(COUNTS.values()), ids=list(COUNTS)
)
ALL_COUNTS = np.arange(5000.0)


@of_counts
def test_probabilities_sum_to_one_and_have_the_mean_and_variance(likelihood, scipy):
    p = likelihood.log_prob(torch.tensor(ALL_COUNTS)).exp().numpy()
    assert p.sum() == pytest.approx(1.0, abs=1e-9)
    mean = (p * ALL_COUNTS).sum()
    assert float(likelihood.mean) == pytest.approx(mean, rel=1e-8)
    variance = (p * (ALL_COUNTS - mean) ** 2).sum()
    assert float(likelihood.variance) == pytest.approx(variance, rel=1e-8)
    assert float(likelihood.log_p_zero()) == pytest.approx(np.log(p[0]), rel=1e-9)


@of_counts
def test_log_prob_and_tails_of_counts_equal_scipy(likelihood, scipy):
    x = np.arange(150.0)
    found = likelihood.log_prob(torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, scipy.logpmf(x), rtol=1e-9, atol=1e-10)
    # 1e-7: far out, scipy's p = theta / (theta + mu) next to 1 has lost digits.
    np.testing.assert_allclose(likelihood.cdf(x), scipy.cdf(x), rtol=1e-9)
    np.testing.assert_allclose(likelihood.sf(x), scipy.sf(x), rtol=1e-7, atol=1e-300)
    np.testing.assert_allclose(likelihood.cdf(x) + likelihood.sf(x), 1.0, rtol=1e-12)


@of_counts
def test_no_count_is_below_zero(likelihood, scipy):
    assert (likelihood.cdf(-1.0), likelihood.sf(-1.0)) == (0.0, 1.0)


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (3.0, 0.005), (-2.0, 40.0)])
def test_the_gaussian_equals_scipy_and_integrates_to_one(mean, variance):
    likelihood, scipy = gaussian_of(mean, variance), norm(mean, np.sqrt(variance))
    y = mean + np.sqrt(variance) * np.linspace(-36, 36, 8001)
    log_p = likelihood.log_prob(torch.tensor(y)).numpy()
    np.testing.assert_allclose(log_p, scipy.logpdf(y), rtol=1e-12)
    np.testing.assert_allclose(likelihood.cdf(y), scipy.cdf(y), rtol=1e-9)
    np.testing.assert_allclose(likelihood.sf(y), scipy.sf(y), rtol=1e-9)
    p = np.exp(log_p)
    assert np.trapezoid(p, y) == pytest.approx(1.0, abs=1e-12)
    assert np.trapezoid(p * y, y) == pytest.approx(float(likelihood.mean), abs=1e-12)
    second = np.trapezoid(p * (y - mean) ** 2, y)
    assert second == pytest.approx(float(likelihood.variance), rel=1e-10)


def exact_nb_log_pmf(x, mu, theta):
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


X = np.array([0, 1, 2, 5, 30, 1e3, 1e4, 1e5, 1e6])
MU = 10.0 ** np.arange(-8, 7)
THETA = 10.0 ** np.arange(-4, 9)
ZERO_LOGIT = np.array([-30.0, -8.0, -3.0, 0.0, 3.0, 8.0, 30.0])


def test_nb_equals_fifty_digits_from_1e_minus_8_to_1e8():
    x, mu, theta = grid(X[[0, 1, 2, 4, 6, 8]], MU[::2], THETA[::2])
    expected = [float(exact_nb_log_pmf(*row)) for row in zip(x, mu, theta, strict=True)]
    found = nb_of(mu, theta).log_prob(torch.tensor(x)).numpy()
    # 4e-7: lgamma(1e8) is 2e9 and float64 has 16 digits.
    np.testing.assert_allclose(found, expected, rtol=2e-9, atol=4e-7)


def textbook_poisson(x, log_mu):
    return x * log_mu - log_mu.exp() - torch.lgamma(x + 1.0)


def textbook_nb(x, log_mu, log_theta):
    mu, theta = log_mu.exp(), log_theta.exp()
    return (
        torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1.0)
        - theta * torch.log1p(mu / theta)
        - x * torch.log1p(theta / mu)
    )


def textbook_zinb(x, log_mu, log_theta, zero_logit):
    log_pi, log_kept = torch.sigmoid(zero_logit).log(), torch.sigmoid(-zero_logit).log()
    log_nb = textbook_nb(x, log_mu, log_theta)
    return torch.where(x == 0, torch.logaddexp(log_pi, log_kept + log_nb), log_kept + log_nb)


def textbook_gaussian(y, mean, variance):
    return -0.5 * (y - mean) ** 2 / variance - 0.5 * torch.log(2.0 * np.pi * variance)


def with_gradients(function, x, parameters, dtype):
    """Value, then its gradients in each parameter, elementwise, as float64 arrays."""
    leaves = [torch.tensor(v).to(dtype).requires_grad_() for v in parameters]
    value = function(torch.tensor(x).to(dtype), *leaves)
    found = (value, *torch.autograd.grad(value.sum(), leaves))
    return [v.detach().double().numpy() for v in found]


WIDE = {
    "poisson": (Poisson, textbook_poisson, grid(X, np.log(MU))),
    "nb": (NegativeBinomial, textbook_nb, grid(X, np.log(MU), np.log(THETA))),
    "zinb": (ZeroInflatedNB, textbook_zinb, grid(X, np.log(MU), np.log(THETA), ZERO_LOGIT)),
    "gaussian": (
        Gaussian,
        textbook_gaussian,
        grid(np.linspace(0, 14, 15), np.linspace(-3, 14, 18), 10.0 ** np.arange(-3, 4)),
    ),
}


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [(), (1,)], ids=["genes", "cells-and-genes"])
def test_gradients_equal_float64_autograd_of_the_textbook_formula(name, dtype, rows):
    """Counts 0 to 1e6, mu 1e-8 to 1e6, theta 1e-4 to 1e8: finite, and right in float32 too."""
    likelihood, textbook, (x, *parameters) = WIDE[name]
    # Inputs that float32 has exactly, so that the arithmetic alone is compared.
    x, *parameters = (
        v.astype(np.float32).astype(np.float64).reshape(*rows, -1) for v in (x, *parameters)
    )
    found = with_gradients(lambda y, *p: likelihood(*p).log_prob(y), x, parameters, dtype)
    expected = with_gradients(textbook, x, parameters, torch.float64)
    log_p = np.abs(expected[0])
    for a, b in zip(found, expected, strict=True):
        assert np.isfinite(a).all()
        # Rounding is of the terms of log p, which cancel in a gradient: its scale is theirs.
        error = np.abs(a - b) / (1.0 + log_p + np.abs(b))
        assert error.max() < (1e-6 if dtype == torch.float32 else 1e-7)


@pytest.mark.parametrize("name", ["poisson", "nb"])
def test_float32_keeps_five_digits_of_every_log_likelihood(name):
    likelihood, textbook, (x, *parameters) = WIDE[name]
    x, *parameters = (v.astype(np.float32) for v in (x, *parameters))
    found = likelihood(*tensors(*parameters, dtype=torch.float32)).log_prob(torch.tensor(x))
    expected = textbook(*tensors(x, *parameters))
    np.testing.assert_allclose(found.double(), expected, rtol=1e-5, atol=1e-20)


@pytest.mark.parametrize("log_theta", [-80.0, 80.0])
@pytest.mark.parametrize("log_mu", [-60.0, 0.0, 20.0])
def test_no_gradient_is_lost_far_beyond_the_range(log_theta, log_mu):
    """exp(100) is infinite in float32, and infinity over infinity no number."""
    x = np.array([0.0, 1.0, 3.0])
    parameters = [np.full(3, v, dtype=np.float32) for v in (log_mu, log_theta, -1.0)]
    for likelihood, n in ((NegativeBinomial, 2), (ZeroInflatedNB, 3)):
        found = with_gradients(
            lambda y, *p, of=likelihood: of(*p).log_prob(y), x, parameters[:n], torch.float32
        )
        assert all(np.isfinite(values).all() for values in found)


@pytest.mark.parametrize(
    ("dtype", "theta", "tolerance"), [(torch.float64, 1e10, 1e-6), (torch.float32, 1e8, 1e-5)]
)
def test_theta_to_infinity_is_the_poisson(dtype, theta, tolerance):
    x, mu = grid([0.0, 1.0, 7.0, 100.0], [0.01, 1.0, 50.0])
    x, log_mu, log_theta = tensors(x, np.log(mu), np.full(len(x), np.log(theta)), dtype=dtype)
    found, limit = NegativeBinomial(log_mu, log_theta), Poisson(log_mu)
    # 1e-5: lgamma of 1e10, in float64.
    np.testing.assert_allclose(found.log_prob(x), limit.log_prob(x), rtol=tolerance, atol=1e-5)
    np.testing.assert_allclose(found.variance, limit.variance, rtol=tolerance)
    x = x.double().numpy()
    np.testing.assert_allclose(found.double().cdf(x), limit.double().cdf(x), rtol=1e-4)
    np.testing.assert_allclose(found.double().sf(x), limit.double().sf(x), rtol=1e-4)


def test_a_zinb_that_loses_no_count_is_the_nb():
    x, mu, theta = grid([0.0, 1.0, 7.0, 100.0], [0.01, 1.0, 50.0], [0.1, 3.0, 1e3])
    zinb, nb = zinb_of(mu, theta, np.full(len(x), 1e-40)), nb_of(mu, theta)
    np.testing.assert_allclose(
        zinb.log_prob(torch.tensor(x)), nb.log_prob(torch.tensor(x)), rtol=1e-11, atol=1e-13
    )
    for name in ("mean", "variance"):
        np.testing.assert_allclose(getattr(zinb, name), getattr(nb, name), rtol=1e-12)
    for name in ("cdf", "sf", "two_sided_p", "surprise", "pearson_residual", "deviance"):
        of_zinb, of_nb = getattr(zinb, name)(x), getattr(nb, name)(x)
        np.testing.assert_allclose(of_zinb, of_nb, rtol=1e-10, atol=1e-13, err_msg=name)


def test_float32_keeps_the_digits_of_a_zero_where_few_counts_are_lost():
    mu, theta = grid(MU, THETA)
    log_mu, log_theta = tensors(np.log(mu), np.log(theta), dtype=torch.float32)
    few = ZeroInflatedNB(log_mu, log_theta, torch.full_like(log_mu, -60.0)).log_p_zero()
    nb = NegativeBinomial(log_mu, log_theta).log_p_zero()
    torch.testing.assert_close(few[nb > -50], nb[nb > -50], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("x", "mu", "theta", "lower_tail"),
    [
        (0, 1e3, 50.0, True),
        (10, 1e3, 100.0, True),
        (3, 500.0, 1e4, True),
        (5, 690.0, 1e4, True),
        (300, 10.0, 5.0, False),
        (1200, 10.0, 5.0, False),
        (20, 0.01, 10.0, False),
        (75, 1e-2, 1.0, False),
        (60, 1e-3, 1e4, False),
    ],
)
def test_far_tails_lose_no_digits(x, mu, theta, lower_tail):
    """Down to 1e-200, against the sum of the probabilities with 50 digits; the ZINB's too."""
    counts = range(x + 1) if lower_tail else range(x, x + 3000)
    with mpmath.workdps(50):
        tail = mpmath.fsum(mpmath.exp(exact_nb_log_pmf(k, mu, theta)) for k in counts)
    assert 1e-290 < tail < 1e-35
    nb, zinb = nb_of(mu, theta), zinb_of(mu, theta, 0.25)
    found = nb.cdf(x) if lower_tail else nb.sf(x - 1)
    assert float(found / tail) == pytest.approx(1.0, rel=1e-9)
    assert float(nb.two_sided_p(x) / (2 * tail)) == pytest.approx(1.0, rel=1e-9)
    if not lower_tail:
        assert float(zinb.sf(x - 1) / tail) == pytest.approx(0.75, rel=1e-9)


@pytest.mark.parametrize(
    ("x", "mu", "lower_tail"), [(0, 460.0, True), (100, 900.0, True), (150, 1.0, False)]
)
def test_far_tails_of_the_poisson_lose_no_digits(x, mu, lower_tail):
    counts = range(x + 1) if lower_tail else range(x, x + 500)
    with mpmath.workdps(50):
        exact = [mpmath.exp(-mu) * mpmath.mpf(mu) ** k / mpmath.factorial(k) for k in counts]
        tail = mpmath.fsum(exact)
    assert 1e-280 < tail < 1e-150
    found = poisson_of(mu).cdf(x) if lower_tail else poisson_of(mu).sf(x - 1)
    assert float(found / tail) == pytest.approx(1.0, rel=1e-9)


def test_far_tails_of_the_gaussian_lose_no_digits():
    y = np.array([-36.0, -30.0, 30.0, 36.0])
    with mpmath.workdps(50):
        tail = np.array([float(mpmath.ncdf(-abs(v))) for v in y])
    assert (tail < 1e-190).all()
    standard = gaussian_of(np.zeros(4), np.ones(4))
    np.testing.assert_allclose(standard.cdf(y[:2].repeat(2))[[0, 2]], tail[:2], rtol=1e-9)
    np.testing.assert_allclose(standard.sf(y)[2:], tail[2:], rtol=1e-9)
    np.testing.assert_allclose(standard.two_sided_p(y), 2 * tail, rtol=1e-9)


@of_counts
def test_two_sided_p_and_surprise_are_what_their_names_say(likelihood, scipy):
    x = np.arange(120.0)
    expected = np.clip(2 * np.minimum(scipy.cdf(x), scipy.sf(x - 1)), SMALLEST_P, 1.0)
    p = likelihood.two_sided_p(x)
    np.testing.assert_allclose(p, expected, rtol=1e-7)
    assert (p <= 1.0).all()
    each = type(likelihood)(*(v.expand(120) for v in tensors(*likelihood.numpy())))
    np.testing.assert_allclose(each.surprise(x), -np.log(expected), rtol=1e-9, atol=1e-9)
    # Most counts are 0, which are read by a short form.
    np.testing.assert_allclose(each.surprise(0 * x), -np.log(expected[0]), rtol=1e-9, atol=1e-9)


def test_two_sided_p_and_surprise_of_the_gaussian():
    y = np.linspace(-5, 5, 41)
    standard = gaussian_of(0 * y, 0 * y + 1)
    expected = 2 * np.minimum(norm.cdf(y), norm.sf(y))
    np.testing.assert_allclose(standard.two_sided_p(y), expected, rtol=1e-12)
    np.testing.assert_allclose(standard.surprise(y), -np.log(expected), rtol=1e-12, atol=1e-15)


def test_a_tail_beyond_float64_counts_as_the_smallest_p():
    assert nb_of(1e4, 1e3).two_sided_p(100) == SMALLEST_P
    assert nb_of(1e-8, 1e4).two_sided_p(1e6) == SMALLEST_P
    assert gaussian_of(0.0, 1.0).two_sided_p(50.0) == SMALLEST_P
    most = -np.log(SMALLEST_P)
    x = np.array([0.0, 1e6])  # mu = 1e6: 0 is beyond, too
    for likelihood in (poisson_of([1e6, 1.0]), nb_of([1e6, 1.0], [1e4, 1e4])):
        np.testing.assert_allclose(likelihood.surprise(x), most)


@pytest.mark.parametrize(("mu", "theta"), [(0.05, 1.0), (2.0, 0.5), (40.0, 10.0)])
@pytest.mark.parametrize("pi", [0.0, 0.3])
def test_two_sided_p_is_valid_under_the_null(mu, theta, pi):
    """P(p <= t) <= t exactly, summed over all counts, at every t that p can take."""
    likelihood = zinb_of(mu, theta, pi) if pi else nb_of(mu, theta)
    x = np.arange(20_000.0)
    p, pmf = likelihood.two_sided_p(x), likelihood.log_prob(torch.tensor(x)).exp().numpy()
    order = np.argsort(p)
    assert (np.cumsum(pmf[order]) <= p[order] + 1e-9).all()
    # ... and not wastefully so: at mu = 40 the counts are nearly continuous.
    if mu == 40.0 and not pi:
        drawn = np.random.default_rng(0).negative_binomial(theta, theta / (theta + mu), 20_000)
        share = (likelihood.two_sided_p(drawn.astype(float)) <= 0.1).mean()
        assert share == pytest.approx(0.09, abs=0.015)


SAMPLED = {
    "poisson": poisson_of([0.02, 1.0, 30.0, 1e5]),
    "nb": nb_of([0.02, 1.0, 30.0, 1e4], [0.5, 2.0, 1e3, 4.0]),
    "zinb": zinb_of([0.5, 1.0, 30.0, 1e4], [0.5, 2.0, 1e3, 4.0], np.array([0.1, 0.5, 0.02, 0.9])),
    "gaussian": gaussian_of([-2.0, 0.0, 1.0, 5.0], [0.01, 1.0, 4.0, 30.0]),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_have_the_mean_and_variance(name):
    """Within five standard errors; of the variance, that of the mean squared deviation."""
    likelihood, n = SAMPLED[name], 100_000
    values = [v.expand(n, 4) for v in tensors(*likelihood.numpy())]
    torch.manual_seed(0)
    x = type(likelihood)(*values).sample().numpy()
    assert x.shape == (n, 4)
    mean, variance = likelihood.mean.numpy(), likelihood.variance.numpy()
    assert (np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / n)).all()
    square = (x - mean) ** 2
    assert (np.abs(square.mean(0) - variance) < 5 * square.std(0) / np.sqrt(n)).all()
    if name != "gaussian":
        np.testing.assert_array_equal(x, np.round(x))
        zero = np.exp(likelihood.log_p_zero().numpy())
        error = np.sqrt(zero * (1 - zero) / n)
        assert (np.abs((x == 0).mean(0) - zero) < 5 * error + 1e-12).all()


def test_pearson_residuals_are_in_standard_deviations():
    x = np.array([0.0, 3.0, 50.0])
    for likelihood in (
        poisson_of(np.full(3, 2.0)),
        nb_of(np.full(3, 2.0), np.full(3, 0.7)),
        zinb_of(np.full(3, 2.0), np.full(3, 0.7), np.full(3, 0.4)),
        gaussian_of(np.full(3, 2.0), np.full(3, 0.7)),
    ):
        expected = (x - likelihood.mean.numpy()) / np.sqrt(likelihood.variance.numpy())
        np.testing.assert_allclose(likelihood.pearson_residual(x), expected)


def saturated(name, x, theta):
    """The best log-likelihood of each x: mu = x (the ZINB's lost counts are then 0 for sure)."""
    at = np.maximum(x, 1e-300)
    best = {
        "poisson": lambda: poisson_of(at),
        "nb": lambda: nb_of(at, theta),
        "zinb": lambda: zinb_of(at, theta, np.full(len(x), 0.3)),
        "gaussian": lambda: gaussian_of(x, theta),
    }[name]()
    return best.log_prob(torch.tensor(x)).numpy()


@pytest.mark.parametrize("name", ["poisson", "nb", "zinb", "gaussian"])
def test_deviance_is_twice_the_log_likelihood_lost(name):
    x, mu, theta = grid(
        [0.0, 1.0, 2.0, 5.0, 30.0, 1e3, 1e4], 10.0 ** np.arange(-8, 5), 10.0 ** np.arange(-4, 5)
    )

    def likelihood(mu, theta):
        return {
            "poisson": lambda: poisson_of(mu),
            "nb": lambda: nb_of(mu, theta),
            "zinb": lambda: zinb_of(mu, theta, np.full(len(mu), 0.3)),
            "gaussian": lambda: gaussian_of(mu, theta),
        }[name]()

    fitted = likelihood(mu, theta)
    found = fitted.deviance(x)
    assert (found >= 0).all()
    lost = 2 * (saturated(name, x, theta) - fitted.log_prob(torch.tensor(x)).numpy())
    np.testing.assert_allclose(found, lost, rtol=1e-7, atol=1e-6)
    # At its zero, and next to it, where rounding could make it negative.
    counted = x[x > 0], theta[x > 0]
    np.testing.assert_allclose(likelihood(*counted).deviance(counted[0]), 0.0, atol=1e-8)
    assert (likelihood(counted[0] * (1 + 1e-9), counted[1]).deviance(counted[0]) >= 0).all()


def test_deviance_equals_the_loss_by_scipy():
    x, mu, theta = (np.array(v) for v in ([1.0, 7.0, 50.0], [3.0, 2.0, 80.0], [0.7, 5.0, 30.0]))
    lost = scipy_nb(theta, x).logpmf(x) - scipy_nb(theta, mu).logpmf(x)
    np.testing.assert_allclose(nb_of(mu, theta).deviance(x), 2 * lost, rtol=1e-9)
    lost = poisson.logpmf(x, x) - poisson.logpmf(x, mu)
    np.testing.assert_allclose(poisson_of(mu).deviance(x), 2 * lost, rtol=1e-9)
    assert poisson_of(3.0).deviance(np.zeros(1))[0] == pytest.approx(6.0)
    assert zinb_of(3.0, 2.0, 0.3).deviance(np.zeros(1))[0] == pytest.approx(
        -2 * scipy_zinb(3.0, 2.0, 0.3).logpmf(np.zeros(1))[0]
    )


def broad(shape_of_theta):
    """(4 cells, 5 genes) counts, log mu, and log theta of a shape, with gradients."""
    rng = np.random.default_rng(3)
    x = torch.tensor(rng.poisson(1.5, (4, 5)).astype(np.float64))
    log_mu = torch.tensor(rng.normal(0, 1, (4, 5))).requires_grad_()
    log_theta = torch.tensor(rng.normal(0, 1, shape_of_theta)).requires_grad_()
    return x, log_mu, log_theta


@pytest.mark.parametrize("shape", [(5,), (1, 5), (4, 1), (4, 5), (1,), ()])
@pytest.mark.parametrize("inflated", [False, True])
def test_theta_of_genes_cells_or_both_broadcasts(shape, inflated):
    """Values and gradients are those of the parameter written out for every count."""
    x, log_mu, log_theta = broad(shape)

    def likelihood(theta):
        if inflated:
            return ZeroInflatedNB(log_mu, theta, 0.3 * log_mu - 1.0)
        return NegativeBinomial(log_mu, theta)

    found = likelihood(log_theta).log_prob(x)
    written_out = log_theta.detach().expand(4, 5).clone().requires_grad_()
    expected = likelihood(written_out).log_prob(x)
    assert found.shape == (4, 5)
    torch.testing.assert_close(found, expected)
    of_mu, of_theta = torch.autograd.grad(found.sum(), [log_mu, log_theta])
    of_mu_out, of_theta_out = torch.autograd.grad(expected.sum(), [log_mu, written_out])
    torch.testing.assert_close(of_mu, of_mu_out)
    torch.testing.assert_close(of_theta, of_theta_out.sum_to_size(shape))
    # One count at a time.
    one = [
        float(likelihood(written_out)[i, j].log_prob(x[i, j]).detach())
        for i in range(4)
        for j in range(5)
    ]
    np.testing.assert_allclose(found.detach().numpy().ravel(), one, rtol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (4, 5)])
def test_tables_broadcast_as_log_prob_does(shape):
    x, log_mu, log_theta = broad(shape)
    likelihood = NegativeBinomial(log_mu, log_theta).double()
    theta = np.exp(log_theta.detach().numpy())
    scipy = scipy_nb(theta, np.exp(log_mu.detach().numpy()))
    x = x.numpy()
    np.testing.assert_allclose(likelihood.cdf(x), scipy.cdf(x), rtol=1e-9)
    np.testing.assert_allclose(likelihood.sf(x), scipy.sf(x), rtol=1e-9, atol=1e-15)
    p = np.minimum(2 * np.minimum(scipy.cdf(x), scipy.sf(x - 1)), 1.0)
    np.testing.assert_allclose(likelihood.surprise(x), -np.log(p), rtol=1e-9, atol=1e-12)
    assert likelihood.deviance(x).shape == likelihood.pearson_residual(x).shape == (4, 5)


@pytest.mark.parametrize(
    "index", [2, slice(1, 3), (slice(None), [0, 3]), (np.array([0, 1]), np.array([4, 2])), "mask"]
)
@pytest.mark.parametrize("name", ["poisson", "nb", "zinb", "gaussian"])
def test_an_index_takes_the_distribution_of_those_counts(name, index):
    x, log_mu, log_theta = (v.detach() for v in broad((5,)))
    likelihood = {
        "poisson": lambda: Poisson(log_mu),
        "nb": lambda: NegativeBinomial(log_mu, log_theta),
        "zinb": lambda: ZeroInflatedNB(log_mu, log_theta, log_mu - 1.0),
        "gaussian": lambda: Gaussian(log_mu, log_theta.exp()),
    }[name]()
    index = x.numpy() > 1 if isinstance(index, str) else index
    some = likelihood[index]
    assert type(some) is type(likelihood)
    torch.testing.assert_close(some.log_prob(x[index]), likelihood.log_prob(x)[index])
    np.testing.assert_allclose(some.cdf(x[index].numpy()), likelihood.cdf(x.numpy())[index])


def test_double_and_numpy_are_the_parameters_without_a_gradient():
    single = NegativeBinomial(
        torch.zeros(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    )
    double = single.double()
    assert double.log_mu.dtype == torch.float64
    assert not double.log_mu.requires_grad
    assert [v.dtype for v in single.numpy()] == [np.float64, np.float64]
    np.testing.assert_array_equal(single.numpy()[1], np.ones(3))
    assert float(double.cdf(np.zeros((2, 3)))[0, 0]) == pytest.approx(
        float(torch.exp(double.log_p_zero())[0, 0])
    )
