"""The prior of the latent variable and the divergence of a posterior from it.

All priors here are mixtures of diagonal Gaussians: the standard normal has one component, a learned
mixture has its own, and a VampPrior's are the posteriors of learned pseudo-cells. With one
component the divergence has a closed form; with more it is estimated from the sample of z that
training draws anyway.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from omics_vae.likelihoods import LOG_2_PI


def gaussian_kl(
    mean: torch.Tensor,
    log_variance: torch.Tensor,
    prior_mean: torch.Tensor | float = 0.0,
    prior_log_variance: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """KL(N(mean, variance) || N(prior_mean, prior_variance)), elementwise, in nats.

    .. math:: \\tfrac12 \\Big( \\frac{(\\mu - \\mu_0)^2 + \\sigma^2}{\\sigma_0^2}
              - \\log\\frac{\\sigma^2}{\\sigma_0^2} - 1 \\Big)

    Source: Kingma & Welling 2014, arXiv:1312.6114, appendix B.
    """
    log_ratio = log_variance - prior_log_variance
    square = (mean - prior_mean).square() * torch.exp(torch.as_tensor(-prior_log_variance))
    # expm1 keeps the digits where the variances are alike, as in a collapsed dimension.
    return 0.5 * (square + torch.expm1(log_ratio) - log_ratio)


def gaussian_log_density(
    z: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor
) -> torch.Tensor:
    """log N(z; mean, variance), elementwise."""
    return -0.5 * ((z - mean).square() * torch.exp(-log_variance) + log_variance + LOG_2_PI)


class Mixture(NamedTuple):
    """A mixture of diagonal Gaussians: p(z) = sum_k w_k prod_j N(z_j; mean_kj, variance_kj)."""

    log_weight: torch.Tensor  # (components,)
    mean: torch.Tensor  # (components, latent)
    log_variance: torch.Tensor  # (components, latent)

    def take(self, dimensions: list[int]) -> "Mixture":
        """The marginal of some dimensions."""
        return Mixture(self.log_weight, self.mean[:, dimensions], self.log_variance[:, dimensions])

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) of latent points (cells, latent) -> (cells,)."""
        log_n = gaussian_log_density(z[:, None], self.mean, self.log_variance)
        return torch.logsumexp(self.log_weight + log_n.sum(-1), dim=1)

    def log_marginals(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z_j) of each dimension by itself (cells, latent)."""
        log_n = gaussian_log_density(z[:, None], self.mean, self.log_variance)
        return torch.logsumexp(self.log_weight[:, None] + log_n, dim=1)

    def kl(
        self, mean: torch.Tensor, log_variance: torch.Tensor, z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(q || p) of each cell (cells,) and, from the marginals of p, of each dimension.

        q = N(mean, variance) (cells, latent), ``z`` a sample of it. Exact with one component, where
        the dimensions add up to the whole; else one Monte Carlo draw, ``log q(z) - log p(z)``, and
        they need not add up, as the dimensions of a mixture depend on each other.
        """
        if len(self.log_weight) == 1:
            kl = gaussian_kl(mean, log_variance, self.mean, self.log_variance)
            return kl.sum(-1), kl
        log_q = gaussian_log_density(z, mean, log_variance)
        return log_q.sum(-1) - self.log_prob(z), log_q - self.log_marginals(z)


Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class StandardNormal(nn.Module):
    """z ~ N(0, I)."""

    def __init__(self, n_latent: int):
        super().__init__()
        self.register_buffer("zero", torch.zeros(1, n_latent), persistent=False)

    def forward(self, encode: Encode) -> Mixture:
        return Mixture(self.zero[:, 0], self.zero, self.zero)


LOG_VARIANCE_RANGE = (-5.0, 5.0)  # of a learned component


class GaussianMixture(nn.Module):
    """A mixture whose weights, means and variances are learned with the model.

    Source: Dilokthanakul et al. 2016, arXiv:1611.02648.
    """

    def __init__(self, n_components: int, n_latent: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_components))
        self.mean = nn.Parameter(torch.randn(n_components, n_latent))
        self.log_variance = nn.Parameter(torch.zeros(n_components, n_latent))

    def forward(self, encode: Encode) -> Mixture:
        # A component that shrinks onto one cell has no best width.
        log_variance = self.log_variance.clamp(*LOG_VARIANCE_RANGE)
        return Mixture(torch.log_softmax(self.weight, 0), self.mean, log_variance)


class VampPrior(nn.Module):
    """The posteriors of learned pseudo-cells (components, genes), in the encoder's own view.

    .. math:: p(z) = \\sum_k w_k\\, q(z | u_k)

    Source: Tomczak & Welling 2018, arXiv:1705.07120.
    """

    def __init__(self, n_components: int, n_genes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_components))
        self.pseudo_cells = nn.Parameter(torch.zeros(n_components, n_genes))

    def forward(self, encode: Encode) -> Mixture:
        return Mixture(torch.log_softmax(self.weight, 0), *encode(self.pseudo_cells))
