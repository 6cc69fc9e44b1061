"""Which latent dimensions carry information, the evidence for it, and a model cut to those.

A dimension whose posterior equals its prior tells nothing about a cell. Three measures, all on
held-out cells, all in nats a cell except the variance:

- ``kl``: the mean KL(q(z_j|x) || p(z_j)), the information that encoding dimension j costs.
- ``aggregated_kl``: KL(q(z_j) || p(z_j)) of the average posterior: the part of ``kl`` that is a
  mismatch with the prior. ``kl - aggregated_kl`` is the mutual information of x and z_j.
- ``ablation``: the ELBO lost when z_j is fixed at its mean for all cells (its KL is then saved).
  It asks whether the information pays; a noisy dimension can have a large KL and a loss below zero.

A dimension stays when both ``kl`` and ``ablation`` exceed their thresholds. The rule means
something only for a model trained at beta = 1 with early stopping on held-out cells.
Sources: Burda et al. 2016, arXiv:1509.00519 (active units); Hoffman & Johnson 2016 (ELBO surgery).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import logsumexp

from omics_vae.data import CountData
from omics_vae.inference import elbo_parts, embed
from omics_vae.model import VAE

ACTIVE_VARIANCE = 0.01  # Burda et al.: a unit is active when Var[posterior mean] exceeds it
AGGREGATED_CELLS = 2000  # cells in the mixture of the aggregated posterior: cost is its square
AGGREGATED_DRAWS = 5
EVIDENCE_DRAWS = 16  # of z a cell: a verdict stands on these numbers, early stopping on fewer


@dataclass(frozen=True)
class Evidence:
    """One value a latent dimension (latent,)."""

    kl: np.ndarray
    aggregated_kl: np.ndarray
    mean_variance: np.ndarray
    ablation: np.ndarray
    centre: np.ndarray  # mean over cells of the posterior mean: what a cut dimension is fixed at

    def keep(self, min_kl: float, min_ablation: float) -> np.ndarray:
        """Dimensions to keep (latent,) bool; always at least the one with the largest ablation."""
        kept = (self.kl > min_kl) & (self.ablation > min_ablation)
        if not kept.any():
            kept[np.argmax(self.ablation)] = True
        return kept


def gather_evidence(model: VAE, data: CountData, device: torch.device) -> Evidence:
    """Measure every latent dimension of ``model`` on held-out ``data``."""
    mean, variance = embed(model, data, device)
    reconstruction, kl = elbo_parts(model, data, device, EVIDENCE_DRAWS)
    elbo = (reconstruction - kl.sum(1)).mean()
    centre = mean.mean(0, dtype=np.float64)
    ablation = np.empty(mean.shape[1])
    for j, value in enumerate(centre):
        # The other dimensions keep their draws, so the difference is this dimension's alone.
        without, kl_without = elbo_parts(
            model, data, device, EVIDENCE_DRAWS, fixed={j: float(value)}
        )
        ablation[j] = elbo - (without - kl_without.sum(1)).mean()
    return Evidence(
        kl=kl.mean(0),
        aggregated_kl=aggregated_kl(mean, variance),
        mean_variance=mean.var(0, dtype=np.float64),
        ablation=ablation,
        centre=centre,
    )


def aggregated_kl(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """KL of each dimension's aggregated posterior (1/n) sum_i q(z_j|x_i) from N(0, 1), in nats.

    Monte Carlo: the mixture of the cells' Gaussians has no closed form. Where these cells stand for
    others, it is biased up by about exp(kl) / n, as a mixture of few narrow Gaussians has gaps.

    Arguments: ``mean``, ``variance`` (cells, latent). Returns (latent,), not below 0.
    """
    rng = np.random.default_rng(0)
    if len(mean) > AGGREGATED_CELLS:
        cells = rng.choice(len(mean), AGGREGATED_CELLS, replace=False)
        mean, variance = mean[cells], variance[cells]
    mean, variance = mean.astype(np.float64), variance.astype(np.float64)
    result = np.empty(mean.shape[1])
    for j in range(mean.shape[1]):
        m, v = mean[:, j], variance[:, j]
        z = m + np.sqrt(v) * rng.standard_normal((AGGREGATED_DRAWS, len(m)))
        z = z.ravel()[:, None]
        log_q = logsumexp(-0.5 * ((z - m) ** 2 / v + np.log(v)), axis=1) - np.log(len(m))
        result[j] = np.mean(log_q + 0.5 * z[:, 0] ** 2)
    return np.maximum(result, 0.0)


@torch.no_grad()
def cut_model(model: VAE, kept: np.ndarray, centre: np.ndarray) -> VAE:
    """A model with the ``kept`` dimensions only (positions or mask), the others at ``centre``.

    What the decoder added for a cut dimension moves into its bias, so that decoding the kept
    coordinates equals decoding the full vector with the cut ones at their centre.
    """
    n_latent = model.architecture.n_latent
    kept = np.arange(n_latent)[kept]
    gone = np.setdiff1d(np.arange(n_latent), kept)
    cut = VAE(replace(model.architecture, n_latent=len(kept)))
    state = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    for head in ("posterior_mean", "posterior_log_variance"):
        for part in ("weight", "bias"):
            state[f"{head}.{part}"] = state[f"{head}.{part}"][kept]
    weight = state["decoder_input.weight"]
    shift = weight[:, gone] @ torch.from_numpy(np.asarray(centre[gone], dtype=np.float32))
    state["decoder_input.bias"] += shift
    state["decoder_input.weight"] = weight[:, kept].contiguous()
    cut.load_state_dict(state)
    return cut.eval()
