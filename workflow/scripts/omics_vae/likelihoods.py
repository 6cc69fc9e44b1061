"""The negative binomial: log-likelihood for training, tails and deviance for reading a cell.

Parameterization everywhere: mean mu > 0 and inverse dispersion theta > 0, so that

.. math:: \\operatorname{Var}[x] = \\mu + \\mu^2 / \\theta .

theta -> infinity gives the Poisson. In scipy's terms n = theta and p = theta / (theta + mu).
"""

import numpy as np
import torch
from scipy import special
from torch.nn.functional import softplus

STIRLING_FROM = 20.0  # above it, the first correction term leaves an error below 1e-6
SMALLEST_P = 1e-300  # a tail below it counts as this: its logarithm stays finite


def log_rising(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """``lgamma(x + theta) - lgamma(theta)`` without the cancellation at large theta.

    Where theta > 20, Stirling's series of the difference, term by term:
    ``(x + theta - 1/2) log(1 + x/theta) + x log theta - x + (1/(x + theta) - 1/theta)/12``.
    In float32 the plain difference loses every digit at theta = 1e8; this keeps six.
    """
    large = theta > STIRLING_FROM
    # Both branches are evaluated, and a NaN in the unused one would poison the gradient.
    small_theta = torch.where(large, torch.ones_like(theta), theta)
    exact = torch.lgamma(x + small_theta) - torch.lgamma(small_theta)
    large_theta = torch.where(large, theta, torch.full_like(theta, STIRLING_FROM))
    series = (
        (x + large_theta - 0.5) * torch.log1p(x / large_theta)
        + x * (torch.log(large_theta) - 1.0)
        - x / (12.0 * large_theta * (x + large_theta))
    )
    return torch.where(large, series, exact)


def nb_log_likelihood(
    x: torch.Tensor, log_mu: torch.Tensor, log_theta: torch.Tensor
) -> torch.Tensor:
    """Log-probability of counts under the negative binomial, elementwise.

    With a = log mu - log theta:

    .. math:: \\log p(x) = \\log\\frac{\\Gamma(x+\\theta)}{\\Gamma(\\theta)\\,x!}
              - \\theta \\log(1 + e^{a}) - x \\log(1 + e^{-a})

    Arguments: ``x`` counts (cells, genes); ``log_mu`` log mean (cells, genes); ``log_theta`` log
    inverse dispersion, broadcastable. Returns nats, the shape of ``x``.
    """
    a = log_mu - log_theta
    theta = torch.exp(log_theta).expand_as(a)
    return log_rising(x, theta) - torch.lgamma(x + 1.0) - theta * softplus(a) - x * softplus(-a)


def nb_tails(x: np.ndarray, mu: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(X <= x) and P(X >= x), each from its own incomplete beta function.

    Taking one as 1 minus the other would lose the far tail: below 1e-16 nothing would be left.
    Arrays broadcast; returns float64.
    """
    x, mu, theta = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (x, mu, theta)))
    lower = special.betainc(theta, x + 1.0, theta / (theta + mu))
    # P(X >= 0) = 1; the function itself wants a positive first argument.
    upper = np.where(x > 0, special.betainc(np.maximum(x, 1.0), theta, mu / (theta + mu)), 1.0)
    return lower, upper


def nb_two_sided_p(x: np.ndarray, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Two-sided p-value ``2 min(1/2, P(X <= x), P(X >= x))``, at least 1e-300.

    Source: Brechtmann et al. 2018 (OUTRIDER), doi:10.1016/j.ajhg.2018.10.025.
    """
    lower, upper = nb_tails(x, mu, theta)
    return np.clip(2.0 * np.minimum(lower, upper), SMALLEST_P, 1.0)


def nb_deviance(x: np.ndarray, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Unit deviance, twice the log-likelihood lost against the saturated model (mu = x).

    .. math:: 2\\,[\\,x \\log(x/\\mu) - (x + \\theta) \\log\\frac{x + \\theta}{\\mu + \\theta}\\,]

    The first term is 0 at x = 0. Arrays broadcast; returns float64, never negative.
    Source: McCullagh & Nelder 1989, Generalized Linear Models.
    """
    x, mu, theta = (np.asarray(v, dtype=np.float64) for v in (x, mu, theta))
    lost = special.xlogy(x, x) - special.xlogy(x, mu)
    lost = lost - (x + theta) * (np.log(x + theta) - np.log(mu + theta))
    return np.maximum(2.0 * lost, 0.0)
