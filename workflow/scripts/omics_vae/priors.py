"""The prior of the latent variable and the divergence of a posterior from it."""

import torch


def kl_standard_normal(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each cell and dimension, in nats.

    .. math:: \\tfrac12 (\\mu^2 + \\sigma^2 - \\log \\sigma^2 - 1)

    Arguments: ``mean``, ``log_variance`` (cells, dimensions). Returns (cells, dimensions), >= 0.
    Source: Kingma & Welling 2014, arXiv:1312.6114, appendix B.
    """
    # expm1 keeps the digits where the variance is near 1, as in a collapsed dimension.
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)
