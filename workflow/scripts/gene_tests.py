"""Two-sided p-values of counts without loss in the far tail, and what is made of them."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import special

from omics_vae.likelihoods import Gaussian, Likelihood, NegativeBinomial, Poisson, ZeroInflatedNB

LOG_2, LOG_10 = float(np.log(2.0)), float(np.log(10.0))
# Above it scipy's tail functions keep all their digits; they end at 1e-308.
SAFE_P = 1e-280
POISSON_THETA = 1e12  # a negative binomial that no count can tell from a Poisson
TERMS = 10_000  # of a series, at most; a far tail takes tens
TINY = 1e-300
# Gene by gene the log of theta moves by one of these steps from the model's.
SHIFTS = np.linspace(-3.0, 6.0, 46)
NEGLIGIBLE = 1e-7  # probability of a shift
EM_STEPS = 200
OUTLYING_P = 1e-3  # below it a count says nothing of how the usual ones scatter
SMALLEST_SPREAD = 0.05  # of the shifts over genes: below it they are one


def log_upper_tail(x: np.ndarray, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    r"""log P(X >= x) of negative binomial counts far above their mean; x > mu.

    .. math:: P(X \ge x) = I_p(x, \theta),\quad p = \frac{\mu}{\mu+\theta},\qquad
              I_p(a, b) = \frac{p^a (1-p)^b}{a\,B(a, b)}\;
              \cfrac{1}{1 + \cfrac{d_1}{1 + \cfrac{d_2}{1 + \dots}}}

    by Lentz's method. Source: DLMF 8.17.22.
    """
    a, b, p = x, theta, mu / (mu + theta)
    c, d = np.ones_like(p), 1.0 / _not_zero(1.0 - (a + b) * p / (a + 1.0))
    fraction = d.copy()
    for m in range(1, TERMS):
        even = m * (b - m) * p / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * p / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _not_zero(1.0 + term * d)
            c = _not_zero(1.0 + term / c)
            fraction = fraction * c * d
        if np.abs(c * d - 1.0).max(initial=0.0) < 1e-13:
            break
    log_p, log_rest = -np.log1p(theta / mu), -np.log1p(mu / theta)
    return a * log_p + b * log_rest - np.log(a) - special.betaln(a, b) + np.log(fraction)


def log_lower_tail(x: np.ndarray, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """log P(X <= x) of negative binomial counts far below their mean; x < mu.

    The probability of x, times 1 + P(x-1)/P(x) + P(x-2)/P(x) + ..., which falls from the start.
    """
    total, term = np.ones_like(mu), np.ones_like(mu)
    for k in range(TERMS):
        n = np.maximum(x - k, 0.0)
        term = term * n / (n - 1.0 + theta) * (1.0 + theta / mu)
        total = total + term
        if (term < 1e-14 * total).all():
            break
    log_p, log_rest = -np.log1p(theta / mu), -np.log1p(mu / theta)
    log_ways = -np.log(x + theta) - special.betaln(x + 1.0, theta)
    return log_ways + x * log_p + theta * log_rest + np.log(total)


def _not_zero(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < TINY, TINY, values)


def log_two_sided_p(
    x: np.ndarray, expected: Likelihood, theta: np.ndarray | None = None
) -> np.ndarray:
    """Natural log of ``2 min(1/2, P(X <= x), P(X >= x))`` of every count, however small.

    ``x`` float64 (cells, genes) and its distribution (float64); with ``theta``, a posterior of
    :class:`HeldOutTheta`, the average over it. Source: Brechtmann et al. 2018 (OUTRIDER),
    doi:10.1016/j.ajhg.2018.10.025.
    """
    if theta is None:
        return _log_two_sided_p(x, expected)
    result = np.full(x.shape, -np.inf)
    for genes, w, one in possible(expected, theta):
        log_p = np.log(w) + _log_two_sided_p(x[:, genes], one)
        result[:, genes] = np.logaddexp(result[:, genes], log_p)
    return np.minimum(result, 0.0)


def _log_two_sided_p(x: np.ndarray, expected: Likelihood) -> np.ndarray:
    if isinstance(expected, Gaussian):
        distance = np.abs(expected.pearson_residual(x))
        return np.minimum(0.0, LOG_2 + special.log_ndtr(-distance))
    # P(X <= 0) has a short form, so the incomplete functions are only needed above it.
    zero = np.minimum(0.0, LOG_2 + expected.log_p_zero().numpy())
    result = np.array(np.broadcast_to(zero, x.shape))
    counted = np.nonzero(x)
    values, of_them = x[counted], expected[counted]
    p = of_them.two_sided_p(values)
    log_p, far = np.log(p), p < SAFE_P
    if far.any():
        log_p[far] = _far(values[far], of_them[far])
    result[counted] = log_p
    return result


def _far(x: np.ndarray, expected: Likelihood) -> np.ndarray:
    """The same of counts (n,) so far out that the tail underflows."""
    if isinstance(expected, Poisson):
        mu = expected.mean.numpy()
        theta, lost = np.full_like(mu, POISSON_THETA), None
    else:
        mu, theta = np.exp(expected.log_mu.numpy()), np.exp(expected.log_theta.numpy())
        lost = expected.zero_logit.numpy() if isinstance(expected, ZeroInflatedNB) else None
    result, upper = np.empty_like(x), x > mu
    result[upper] = log_upper_tail(x[upper], mu[upper], theta[upper])
    result[~upper] = log_lower_tail(x[~upper], mu[~upper], theta[~upper])
    if lost is not None:
        kept = result - np.logaddexp(0.0, lost)  # times 1 - pi
        result = np.where(upper, kept, np.logaddexp(kept, -np.logaddexp(0.0, -lost)))
    return np.minimum(0.0, LOG_2 + result)


def z_score(log_p: np.ndarray, is_up: np.ndarray) -> np.ndarray:
    r"""The standard normal value as surprising as the count, with the sign of its side.

    .. math:: z = \pm\,\Phi^{-1}(1 - p / 2)

    So one scale serves all genes, however skewed their counts are; |z| = 1.96 has p = 0.05.
    """
    distance = -special.ndtri_exp(log_p - LOG_2)
    return np.where(is_up, distance, -distance)


def benjamini_yekutieli(log_p: np.ndarray) -> np.ndarray:
    r"""log q of each test within its row (cells, genes).

    .. math:: q_{(i)} = \min_{j \ge i} p_{(j)} \frac{G}{j} \sum_{k \le G} \frac1k

    Holds however the genes of a cell depend on each other. In logarithms, for the far tail.
    Source: Benjamini & Yekutieli 2001, doi:10.1214/aos/1013699998.
    """
    n = log_p.shape[1]
    rank = np.arange(1, n + 1)
    order = np.argsort(log_p, axis=1, kind="stable")
    scaled = np.take_along_axis(log_p, order, 1) + np.log(n * (1.0 / rank).sum() / rank)
    scaled = np.minimum.accumulate(scaled[:, ::-1], axis=1)[:, ::-1]
    result = np.empty_like(scaled)
    np.put_along_axis(result, order, np.minimum(scaled, 0.0), 1)
    return result


class HeldOutTheta:
    r"""What held-out observations say of theta, gene by gene, beside what the model says.

    .. math:: \log \theta'_{ig} = \log \theta_{ig} + \delta_g, \qquad \delta_g \sim N(a, s^2)

    Training tells theta from residuals that its mean was fitted to, under a prior made for cells
    (log theta near 0). Observations that it has not seen tell what the expectation is worth: their
    scatter holds the error of the mean too. Few observations say little about one gene, so a and
    s^2 are learned from all genes (empirical Bayes), and p-values are averaged over what remains
    possible, as a t-test does with an uncertain variance.
    """

    def __init__(self, n_genes: int):
        self.log_likelihood = np.zeros((len(SHIFTS), n_genes))

    def add(
        self,
        x: np.ndarray,
        expected: NegativeBinomial | ZeroInflatedNB,
        first: np.ndarray | None = None,
    ) -> None:
        """Count in some held-out observations (cells, genes).

        ``first``: a posterior under which counts of p < 0.001 are outliers and left out; a single
        one can halve theta, and with it the evidence against itself.
        """
        usual = np.ones(x.shape, dtype=bool)
        if first is not None:
            usual = log_two_sided_p(x, expected, first) >= np.log(OUTLYING_P)
        counts, weight = torch.from_numpy(x), torch.from_numpy(usual)
        for k, shift in enumerate(SHIFTS):
            log_prob = shifted_theta(expected, shift).log_prob(counts)
            self.log_likelihood[k] += (log_prob * weight).sum(0).numpy()

    def posterior(self) -> np.ndarray:
        """The probability of each of ``SHIFTS`` for each gene (shifts, genes)."""
        centre, variance = 0.0, 1.0
        for _ in range(EM_STEPS):
            log_w = self.log_likelihood - 0.5 * (SHIFTS[:, None] - centre) ** 2 / variance
            w = special.softmax(log_w, axis=0)
            centre = float((w.mean(1) * SHIFTS).sum())
            spread = float((w.mean(1) * (SHIFTS - centre) ** 2).sum())
            variance = max(spread, SMALLEST_SPREAD**2)
        return w


def shifted_theta(expected: Likelihood, shift: float) -> Likelihood:
    """The same likelihood with log theta moved by ``shift``."""
    values = {name: getattr(expected, name) for name in expected.__dataclass_fields__}
    return type(expected)(**values | {"log_theta": values["log_theta"] + shift})


def possible(expected: Likelihood, theta: np.ndarray | None) -> Iterator[tuple]:
    """The distributions that a posterior of theta leaves possible.

    Yields positions of genes, the probability of a shift for each, and the likelihood of those
    genes under it. ``theta`` None: the model's own distribution alone.
    """
    if theta is None:
        yield slice(None), 1.0, expected
        return
    for shift, w in zip(SHIFTS, theta, strict=True):
        genes = np.flatnonzero(w > NEGLIGIBLE)
        if len(genes):
            yield genes, w[genes], shifted_theta(expected, float(shift))[:, genes]


def randomised_p(
    x: np.ndarray, expected: Likelihood, rng: np.random.Generator, theta: np.ndarray | None = None
) -> np.ndarray:
    """Two-sided p-values that are uniform if the distribution is right, though counts are whole.

    The tail takes a random share of P(X = x): ``2 min(t, 1 - t)``, t uniform between P(X < x) and
    P(X <= x). For checks only: chance has a say in them. Source: Dunn & Smyth 1996,
    doi:10.1080/10618600.1996.10474708.
    """
    is_whole = not isinstance(expected, Gaussian)
    below, above = np.zeros(x.shape), np.zeros(x.shape)
    for genes, w, one in possible(expected, theta):
        below[:, genes] += w * one.cdf(x[:, genes] - is_whole)
        above[:, genes] += w * one.sf(x[:, genes])
    share, of_x = rng.random(x.shape), np.maximum(1.0 - below - above, 0.0)
    return 2.0 * np.minimum(below + share * of_x, above + (1.0 - share) * of_x)
