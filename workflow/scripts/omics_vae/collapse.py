"""Posterior collapse: is z in use, and if not, why.

A model with a collapsed posterior gives every cell the same z, whatever its ELBO says. Three
measures on held-out cells see it: the KL of each dimension, the number of active units (Burda et
al. 2016: those whose posterior mean varies), and the mutual information I(x; z), which is 0 also
where a posterior differs from the prior but not from cell to cell.
Sources: Burda et al. 2016, arXiv:1509.00519; Hoffman & Johnson 2016 (ELBO surgery); Dieng et al.
2019 (skip connections), arXiv:1807.04863.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp

from omics_vae.data import CountData
from omics_vae.inference import Embedding, decoded, embed, posteriors
from omics_vae.model import VAE
from omics_vae.priors import Mixture

ACTIVE_VARIANCE = 0.01  # Burda et al.: a unit is active when Var[posterior mean] exceeds it
MIXTURE_CELLS = 2000  # cells in the aggregated posterior: cost is its square
MIXTURE_DRAWS = 5
PARTS = 20  # in which every draw meets every cell: 8 MB each
LITTLE_INFORMATION = 0.05  # nats; as the KL under which a dimension is pruned
NOISY_DISPERSION = 0.5  # Pearson dispersion below which a decoder expects too much scatter
DIAGNOSED_CELLS = 1000  # more would say the same


def active_units(mean: np.ndarray) -> int:
    """How many dimensions' posterior means (cells, latent) vary over the cells."""
    return int((mean.var(0, dtype=np.float64) > ACTIVE_VARIANCE).sum())


def _sample(at: Embedding, draws: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance (cells, latent) of at most MIXTURE_CELLS cells, and draws (all, latent)."""
    rng = np.random.default_rng(0)
    mean, variance = at.mean.astype(np.float64), at.variance.astype(np.float64)
    if len(mean) > MIXTURE_CELLS:
        cells = rng.choice(len(mean), MIXTURE_CELLS, replace=False)
        mean, variance = mean[cells], variance[cells]
    z = mean + np.sqrt(variance) * rng.standard_normal((draws, *mean.shape))
    return mean, variance, z.reshape(-1, mean.shape[1])


def mutual_information(at: Embedding, draws: int = 1) -> float:
    """I(x; z) in nats: the mean of log q(z|x) - log q(z), q(z) the average posterior.

    Monte Carlo, over at most 2,000 cells. With n cells it cannot exceed log n: a value near that
    says "at least so much".
    """
    mean, variance, z = _sample(at, draws)
    own = np.tile(np.arange(len(mean)), draws)
    log_q = -0.5 * (((z - mean[own]) ** 2 / variance[own]) + np.log(variance[own])).sum(1)
    precision = 1.0 / variance
    constant = (mean**2 * precision).sum(1) + np.log(variance).sum(1)
    log_mixture = np.empty(len(z))
    for part in np.array_split(np.arange(len(z)), PARTS):
        # (z - m)^2 / v of every pair of cells, as matrix products.
        square = z[part] ** 2 @ precision.T - 2.0 * z[part] @ (mean * precision).T + constant
        log_mixture[part] = logsumexp(-0.5 * square, axis=1)
    return float(np.mean(log_q - log_mixture + np.log(len(mean))))


def aggregated_kl(at: Embedding, prior: Mixture) -> np.ndarray:
    """KL of each dimension's average posterior from the prior's marginal (latent,), in nats.

    The part of a dimension's KL that is a mismatch with the prior; the rest is its mutual
    information with x. Monte Carlo: the mixture of the cells' Gaussians has no closed form. Where
    these cells stand for others, it is biased up by about exp(kl) / n, as a mixture of few narrow
    Gaussians has gaps.
    """
    mean, variance, z = _sample(at, MIXTURE_DRAWS)
    log_p = prior.log_marginals(torch.from_numpy(z).to(prior.mean)).detach().double().cpu().numpy()
    result = np.empty(mean.shape[1])
    for j, (m, v) in enumerate(zip(mean.T, variance.T, strict=True)):
        constant, log_mixture = np.log(2.0 * np.pi * v), np.empty(len(z))
        for part in np.array_split(np.arange(len(z)), PARTS):
            log_n = -0.5 * ((z[part, j, None] - m) ** 2 / v + constant)
            log_mixture[part] = logsumexp(log_n, axis=1)
        result[j] = np.mean(log_mixture - np.log(len(m)) - log_p[:, j])
    return np.maximum(result, 0.0)


@dataclass(frozen=True)
class Diagnosis:
    """Why z is idle: the cause (objective, decoder, data), what shows it, what mends it."""

    cause: str
    shown_by: str
    mend: str


def diagnose(
    model: VAE, data: CountData, device: torch.device, beta: float, n_axes: int
) -> Diagnosis | None:
    """The probable cause of a collapse; None where z is in use.

    ``data``: held-out cells. ``n_axes``: singular values of the training counts above their noise
    (:func:`omics_vae.pruning.signal_axes`). The causes are told apart by what the model does: a
    decoder that follows the skip connection of another cell, one that expects more scatter than the
    data have, data without structure; what remains is an objective that makes z too dear.
    """
    if len(data) > DIAGNOSED_CELLS:
        data = data.take(np.linspace(0, len(data) - 1, DIAGNOSED_CELLS).astype(int))
    at = embed(model, data, device)
    information, active = mutual_information(at, MIXTURE_DRAWS), active_units(at.mean)
    if active and information > LITTLE_INFORMATION:
        return None
    carried = skipped_information(model, data, device)
    if carried > LITTLE_INFORMATION:
        return Diagnosis(
            "decoder",
            f"the skip connection brings it {carried:.3g} nats of each cell past z",
            "set train.skip to film or none",
        )
    dispersion = pearson_dispersion(model, data, at, device)
    if dispersion < NOISY_DISPERSION:
        return Diagnosis(
            "decoder",
            f"it expects {1 / dispersion:.3g} times the scatter that the cells have",
            "lower train.gaussian_variance or set it to null, or set train.dispersion to gene",
        )
    if n_axes == 0:
        return Diagnosis(
            "data",
            "no singular value of the training cells stands above the noise",
            "check that the reference varies, or bring more cells or deeper sequencing",
        )
    return Diagnosis(
        "objective",
        f"the cells vary along {n_axes} axes and beta is {beta:g}",
        ("lower train.beta to 1, " if beta > 1 else "")
        + "lengthen train.kl_warmup_steps, set train.free_bits, or lower train.weight_decay",
    )


@torch.no_grad()
def skipped_information(model: VAE, data: CountData, device: torch.device) -> float:
    """Nats a cell that are lost when the skip connection brings another cell's hidden units."""
    lost = []
    for _, batch, q in posteriors(model, data, device):
        if model.architecture.skip == "none":
            return 0.0
        other = q._replace(hidden=q.hidden.roll(1, 0))
        log_p = [model.decode(q.mean, p, batch).log_prob(model.target(batch)) for p in (q, other)]
        lost.append((log_p[0] - log_p[1]).sum(-1))
    return float(torch.cat(lost).mean())


def pearson_dispersion(model: VAE, data: CountData, at: Embedding, device: torch.device) -> float:
    """Mean squared Pearson residual of the decoded cells; 1 where the scatter is as expected."""
    squares, n = 0.0, 0
    for _, x, likelihood in decoded(model, data, at, device):
        squares += float(np.square(likelihood.pearson_residual(x)).sum())
        n += x.size
    return squares / n
