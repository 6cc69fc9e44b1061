"""How counts scatter around what the decoder expects: Poisson, negative binomial, ZINB, Gaussian.

Parameterization everywhere: mean mu > 0 and inverse dispersion theta > 0, so that

.. math:: \\operatorname{Var}_{\\mathrm{NB}}[x] = \\mu + \\mu^2 / \\theta .

theta -> infinity gives the Poisson. In scipy's terms n = theta and p = theta / (theta + mu).

The log-likelihoods are safe in float32 for counts to 1e6, mu from 1e-8 to 1e6 and theta from 1e-4
to 1e8. Most counts are 0, where they have a short form that loses no digit; the few others, whose
terms grow to 1e7 and cancel, are computed in float64 by the textbook formula.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy import special
from torch.nn.functional import logsigmoid, softplus

SMALLEST_P = 1e-300  # a tail below it counts as this: its logarithm stays finite
LOG_2_PI = float(np.log(2.0 * np.pi))


def _at(parameter: torch.Tensor, shape: torch.Size, flat: torch.Tensor) -> torch.Tensor:
    """Elements of a parameter, broadcast to ``shape``, at flat positions; float64."""
    # A value a gene: its gradient is summed by gene, not element by element.
    if parameter.ndim == 1 and len(parameter) == shape[-1]:
        return parameter.index_select(0, flat % shape[-1]).double()
    return parameter.expand(shape).reshape(-1).index_select(0, flat).double()


@dataclass(frozen=True)
class Likelihood:
    """The distribution of each count (cells, genes). Parameters are tensors that broadcast."""

    def __getitem__(self, index) -> "Likelihood":
        """The same distribution of some of the counts, by any index of (cells, genes)."""
        values = torch.broadcast_tensors(*(getattr(self, f.name) for f in fields(self)))
        return type(self)(*(value[index] for value in values))

    def numpy(self) -> list[np.ndarray]:
        """The parameters as float64 arrays."""
        return [getattr(self, f.name).detach().double().cpu().numpy() for f in fields(self)]

    def double(self) -> "Likelihood":
        """The same in float64 on the CPU, detached: for tails and tables."""
        return type(self)(*map(torch.from_numpy, self.numpy()))

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """P(X <= x) of counts; 0 below 0."""
        x = np.asarray(x, dtype=np.float64)
        return np.where(x < 0, 0.0, self._cdf(np.maximum(x, 0.0)))

    def sf(self, x: np.ndarray) -> np.ndarray:
        """P(X > x) of counts; 1 below 0."""
        x = np.asarray(x, dtype=np.float64)
        return np.where(x < 0, 1.0, self._sf(np.maximum(x, 0.0)))

    def two_sided_p(self, x: np.ndarray) -> np.ndarray:
        """Two-sided p-value ``2 min(1/2, P(X <= x), P(X >= x))``, at least 1e-300.

        Each tail from its own function: 1 minus the other has no digit left below 1e-16.
        Source: Brechtmann et al. 2018 (OUTRIDER), doi:10.1016/j.ajhg.2018.10.025.
        """
        x = np.asarray(x, dtype=np.float64)
        return np.clip(2.0 * np.minimum(self.cdf(x), self.sf(x - 1.0)), SMALLEST_P, 1.0)

    def surprise(self, x: np.ndarray) -> np.ndarray:
        """-log of the two-sided p-value of every count (cells, genes), in nats.

        P(X = 0) has a short form, so the incomplete functions are only needed above it.
        """
        limit = -np.log(SMALLEST_P)
        result = np.clip(-self.log_p_zero().numpy() - np.log(2.0), 0.0, limit)
        result = np.array(np.broadcast_to(result, x.shape))
        counted = np.nonzero(x)
        result[counted] = -np.log(self[counted].two_sided_p(x[counted]))
        return result

    def pearson_residual(self, x: np.ndarray) -> np.ndarray:
        """(x - mean) / standard deviation (cells, genes)."""
        return (x - self.mean.numpy()) / np.sqrt(self.variance.numpy())

    def _log_prob_of_counts(
        self, x: torch.Tensor, of_count: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        """``log_p_zero`` where x is 0, elsewhere ``of_count`` of x and the parameters, float64."""
        zero = self.log_p_zero().expand(x.shape)
        flat = torch.nonzero(x.reshape(-1)).squeeze(-1)
        parameters = [_at(getattr(self, f.name), x.shape, flat) for f in fields(self)]
        counted = of_count(x.reshape(-1).index_select(0, flat).double(), *parameters)
        return zero.reshape(-1).index_put((flat,), counted.to(zero.dtype)).view(x.shape)


def _nb_of_count(x: torch.Tensor, log_mu: torch.Tensor, log_theta: torch.Tensor) -> torch.Tensor:
    """The textbook log-probability of NB counts, in float64."""
    theta, a = torch.exp(log_theta), log_mu - log_theta
    binomial = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1.0)
    return binomial - theta * softplus(a) - x * softplus(-a)


def _nb_deviance(x: np.ndarray, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    lost = special.xlogy(x, x) - special.xlogy(x, mu)
    lost = lost - (x + theta) * (np.log(x + theta) - np.log(mu + theta))
    return np.maximum(2.0 * lost, 0.0)


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts that scatter by sampling alone.

    .. math:: \\log p(x) = x \\log\\mu - \\mu - \\log x!
    """

    log_mu: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        return torch.exp(self.log_mu)

    @property
    def variance(self) -> torch.Tensor:
        return self.mean

    def log_p_zero(self) -> torch.Tensor:
        return -self.mean

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) in nats, the shape of ``x``."""
        return self._log_prob_of_counts(
            x, lambda n, log_mu: n * log_mu - torch.exp(log_mu) - torch.lgamma(n + 1.0)
        )

    def sample(self) -> torch.Tensor:
        return torch.poisson(self.mean)

    def _cdf(self, x: np.ndarray) -> np.ndarray:
        return special.pdtr(x, self.mean.numpy())

    def _sf(self, x: np.ndarray) -> np.ndarray:
        return special.pdtrc(x, self.mean.numpy())

    def deviance(self, x: np.ndarray) -> np.ndarray:
        """Twice the log-likelihood lost against mu = x: ``2 [x log(x/mu) - (x - mu)]``."""
        mu = self.mean.numpy()
        return np.maximum(2.0 * (special.xlogy(x, x) - special.xlogy(x, mu) - (x - mu)), 0.0)


@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    """Counts that scatter more than sampling alone explains. With a = log mu - log theta:

    .. math:: \\log p(x) = \\log\\frac{\\Gamma(x+\\theta)}{\\Gamma(\\theta)\\,x!}
              - \\theta \\log(1 + e^{a}) - x \\log(1 + e^{-a})

    In float32 the error is below 1e-5 of the value.
    """

    log_mu: torch.Tensor
    log_theta: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        return torch.exp(self.log_mu)

    @property
    def variance(self) -> torch.Tensor:
        return self.mean + torch.exp(2.0 * self.log_mu - self.log_theta)

    def log_p_zero(self) -> torch.Tensor:
        return -torch.exp(self.log_theta) * softplus(self.log_mu - self.log_theta)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) in nats, the shape of ``x``."""
        return self._log_prob_of_counts(x, _nb_of_count)

    def sample(self) -> torch.Tensor:
        """A gamma-Poisson draw."""
        theta = torch.exp(self.log_theta).expand(self.mean.shape)
        return torch.poisson(torch.distributions.Gamma(theta, theta / self.mean).sample())

    def _cdf(self, x: np.ndarray) -> np.ndarray:
        x, mu, theta = self._broadcast(x)
        return special.betainc(theta, x + 1.0, theta / (theta + mu))

    def _sf(self, x: np.ndarray) -> np.ndarray:
        x, mu, theta = self._broadcast(x)
        return special.betainc(x + 1.0, theta, mu / (theta + mu))

    def deviance(self, x: np.ndarray) -> np.ndarray:
        """Unit deviance, twice the log-likelihood lost against the saturated model (mu = x).

        ``2 [x log(x / mu) - (x + theta) log((x + theta) / (mu + theta))]``.
        Source: McCullagh & Nelder 1989, Generalized Linear Models.
        """
        return _nb_deviance(*self._broadcast(x))

    def _broadcast(self, x: np.ndarray) -> list[np.ndarray]:
        log_mu, log_theta = self.numpy()
        return np.broadcast_arrays(
            np.asarray(x, dtype=np.float64), np.exp(log_mu), np.exp(log_theta)
        )


@dataclass(frozen=True)
class ZeroInflatedNB(Likelihood):
    """A negative binomial of which a share pi is lost: observed as 0 whatever it was.

    .. math:: p(0) = \\pi + (1 - \\pi) \\mathrm{NB}(0), \\qquad p(x) = (1 - \\pi) \\mathrm{NB}(x)

    ``zero_logit``: log(pi / (1 - pi)). Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.
    """

    log_mu: torch.Tensor
    log_theta: torch.Tensor
    zero_logit: torch.Tensor

    @property
    def _counted(self) -> NegativeBinomial:
        return NegativeBinomial(self.log_mu, self.log_theta)

    @property
    def mean(self) -> torch.Tensor:
        return torch.exp(self.log_mu + logsigmoid(-self.zero_logit))

    @property
    def variance(self) -> torch.Tensor:
        mu, pi = torch.exp(self.log_mu), torch.sigmoid(self.zero_logit)
        return (1.0 - pi) * (self._counted.variance + pi * mu.square())

    def log_p_zero(self) -> torch.Tensor:
        log_kept = self._counted.log_p_zero() + logsigmoid(-self.zero_logit)
        return torch.logaddexp(logsigmoid(self.zero_logit), log_kept)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) in nats, the shape of ``x``."""
        return self._log_prob_of_counts(
            x, lambda n, mu, theta, zero: _nb_of_count(n, mu, theta) - softplus(zero)
        )

    def sample(self) -> torch.Tensor:
        counted = self._counted.sample()
        return counted * (torch.rand_like(counted) < torch.sigmoid(-self.zero_logit))

    def _cdf(self, x: np.ndarray) -> np.ndarray:
        pi = torch.sigmoid(self.zero_logit).numpy()
        return pi + (1.0 - pi) * self._counted.cdf(x)

    def _sf(self, x: np.ndarray) -> np.ndarray:
        return torch.sigmoid(-self.zero_logit).numpy() * self._counted.sf(x)

    def deviance(self, x: np.ndarray) -> np.ndarray:
        """As of the NB above 0; at 0, which the saturated model gives for sure, -2 log p(0)."""
        zero = -2.0 * self.log_p_zero().numpy()
        return np.where(np.asarray(x) > 0, self._counted.deviance(x), zero)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """A real value with a normal error.

    .. math:: \\log p(y) = -\\tfrac12 [(y - m)^2 / v + \\log v + \\log 2\\pi]

    The variance must not reach 0: where the decoder meets a gene exactly, as it can one that is 0
    in all cells of a batch, the density grows without bound as v -> 0 and the ELBO has no maximum.
    So v is fixed, or learned above a floor (``model.VARIANCE_FLOOR``).
    """

    mean: torch.Tensor
    variance: torch.Tensor

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) in nats, the shape of ``x``."""
        square = (x - self.mean).square() / self.variance
        return -0.5 * (square + torch.log(self.variance) + LOG_2_PI)

    def sample(self) -> torch.Tensor:
        return self.mean + torch.sqrt(self.variance) * torch.randn_like(self.mean)

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """P(X <= x)."""
        return special.ndtr(self.pearson_residual(x))

    def sf(self, x: np.ndarray) -> np.ndarray:
        """P(X > x)."""
        return special.ndtr(-self.pearson_residual(x))

    def two_sided_p(self, x: np.ndarray) -> np.ndarray:
        """2 P(X > x), or 2 P(X < x) where that is smaller; at least 1e-300."""
        return np.clip(2.0 * special.ndtr(-np.abs(self.pearson_residual(x))), SMALLEST_P, 1.0)

    def surprise(self, x: np.ndarray) -> np.ndarray:
        """-log of the two-sided p-value of every value (cells, genes), in nats."""
        return -np.log(self.two_sided_p(x))

    def deviance(self, x: np.ndarray) -> np.ndarray:
        """Twice the log-likelihood lost against m = y: the squared residual in SDs."""
        return np.square(self.pearson_residual(x))
