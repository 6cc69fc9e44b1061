"""Which latent dimensions carry information, the evidence for it, and a model cut to those.

A dimension whose posterior equals its prior tells nothing about a cell. Three measures, all on
held-out cells, all in nats a cell except the variance:

- ``kl``: the mean KL(q(z_j|x) || p(z_j)), the information that encoding dimension j costs.
- ``aggregated_kl``: KL(q(z_j) || p(z_j)) of the average posterior: the part of ``kl`` that is a
  mismatch with the prior. ``kl - aggregated_kl`` is the mutual information of x and z_j.
- ``ablation``: the ELBO lost when z_j is fixed at its mean for all cells (its KL is then saved).
  It asks whether the information pays; a noisy dimension can have a large KL and a loss below zero.

A dimension stays when both ``kl`` and ``ablation`` exceed their thresholds. The rule means
something only for a model trained at beta = 1 with early stopping on held-out cells. A second
opinion, that knows no VAE: how many singular values of the counts stand above the noise.
Sources: Burda et al. 2016, arXiv:1509.00519 (active units); Hoffman & Johnson 2016 (ELBO surgery);
Gavish & Donoho 2014, doi:10.1109/TIT.2014.2323359 (singular values).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.integrate import cumulative_trapezoid
from scipy.linalg import eigvalsh

from omics_vae.collapse import aggregated_kl
from omics_vae.data import CountData
from omics_vae.inference import CHUNK, cell_elbo, embed
from omics_vae.likelihoods import NegativeBinomial
from omics_vae.model import VAE

EVIDENCE_DRAWS = 16  # of z a cell: a verdict stands on these numbers, early stopping on fewer
AXES_CELLS = 5000  # of the singular values: cost is the square of the smaller side


@dataclass(frozen=True)
class Evidence:
    """One value a latent dimension (latent,)."""

    kl: np.ndarray
    kl_se: np.ndarray  # standard error over the cells
    aggregated_kl: np.ndarray
    mean_variance: np.ndarray
    ablation: np.ndarray
    ablation_se: np.ndarray  # of the paired difference
    centre: np.ndarray  # mean over cells of the posterior mean: what a cut dimension is fixed at

    def keep(self, min_kl: float, min_ablation: float) -> np.ndarray:
        """Dimensions to keep (latent,) bool; always at least the one with the largest ablation."""
        kept = (self.kl > min_kl) & (self.ablation > min_ablation)
        if not kept.any():
            kept[np.argmax(self.ablation)] = True
        return kept

    def sure(self, min_kl: float, min_ablation: float, errors: float = 2.0) -> np.ndarray:
        """Whether the verdict would be the same ``errors`` standard errors off (latent,) bool."""
        margin_kl = (self.kl - min_kl) / np.maximum(self.kl_se, 1e-12)
        margin = (self.ablation - min_ablation) / np.maximum(self.ablation_se, 1e-12)
        clearly_in = (margin_kl > errors) & (margin > errors)
        return clearly_in | (margin_kl < -errors) | (margin < -errors)


def gather_evidence(model: VAE, data: CountData, device: torch.device) -> Evidence:
    """Measure every latent dimension of ``model`` on held-out ``data``."""
    at = embed(model, data, device)
    whole = cell_elbo(model, data, device, EVIDENCE_DRAWS)
    centre = at.mean.mean(0, dtype=np.float64)
    root_n, lost = np.sqrt(len(data)), []
    for j, value in enumerate(centre):
        # The other dimensions keep their draws, so the difference is this dimension's alone.
        without = cell_elbo(model, data, device, EVIDENCE_DRAWS, fixed={j: float(value)})
        lost.append(whole.of_cells - without.of_cells)
    return Evidence(
        kl=whole.kl_dimensions.mean(0),
        kl_se=whole.kl_dimensions.std(0, ddof=1) / root_n,
        aggregated_kl=aggregated_kl(at, model.prior_of_z()),
        mean_variance=at.mean.var(0, dtype=np.float64),
        ablation=np.mean(lost, axis=1),
        ablation_se=np.std(lost, axis=1, ddof=1) / root_n,
        centre=centre,
    )


@torch.no_grad()
def cut_model(model: VAE, kept: np.ndarray, centre: np.ndarray) -> VAE:
    """A model with the ``kept`` dimensions only (positions or mask), the others at ``centre``.

    What the decoder added for a cut dimension moves into its bias, so that decoding the kept
    coordinates equals decoding the full vector with the cut ones at their centre. A learned prior
    is left with its marginal.
    """
    n_latent = model.architecture.n_latent
    kept = np.arange(n_latent)[kept]
    gone = np.setdiff1d(np.arange(n_latent), kept)
    cut = VAE(replace(model.architecture, n_latent=len(kept)))
    state = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    for head in ("posterior_mean", "posterior_log_variance"):
        for part in ("weight", "bias"):
            state[f"{head}.{part}"] = state[f"{head}.{part}"][kept]
    for name in ("prior.mean", "prior.log_variance"):
        if name in state:
            state[name] = state[name][:, kept].contiguous()
    fixed = torch.from_numpy(np.asarray(centre[gone], dtype=np.float32))
    for layer in model.readers_of_z():
        weight = state[f"{layer}.weight"]
        state[f"{layer}.bias"] += weight[:, gone] @ fixed
        columns = np.append(kept, np.arange(n_latent, weight.shape[1]))  # covariates stay
        state[f"{layer}.weight"] = weight[:, columns].contiguous()
    cut.load_state_dict(state)
    return cut.eval()


def noise_median(aspect: float) -> float:
    """Median of the Marchenko-Pastur law of aspect ratio ``aspect`` <= 1 (squared singular values).

    The squared singular values, over the longer side, of a matrix of independent unit noise.
    """
    low, high = (1 - np.sqrt(aspect)) ** 2, (1 + np.sqrt(aspect)) ** 2
    # t = low + (high - low) sin^2: the density's square roots at both ends become smooth.
    phi = np.linspace(1e-6, np.pi / 2, 20_001)
    t = low + (high - low) * np.sin(phi) ** 2
    below = cumulative_trapezoid(np.square(np.sin(phi) * np.cos(phi)) / t, phi, initial=0.0)
    return float(np.interp(0.5 * below[-1], below, t))


def hard_threshold(singular_values: np.ndarray, shape: tuple[int, int]) -> float:
    """The optimal hard threshold for singular values of signal plus noise of unknown size.

    .. math:: \\tau = \\frac{\\lambda(b)}{\\sqrt{m_b}} \\operatorname{median}(s), \\quad
              \\lambda(b)^2 = 2 (b + 1) + \\frac{8 b}{b + 1 + \\sqrt{b^2 + 14 b + 1}}

    b is the shorter side over the longer, m_b :func:`noise_median`.
    Source: Gavish & Donoho 2014, doi:10.1109/TIT.2014.2323359.
    """
    aspect = min(shape) / max(shape)
    root = np.sqrt(aspect**2 + 14 * aspect + 1)
    factor = np.sqrt(2 * (aspect + 1) + 8 * aspect / (aspect + 1 + root))
    return float(factor / np.sqrt(noise_median(aspect)) * np.median(singular_values))


def signal_axes(data: CountData, seed: int = 0) -> int:
    """How many singular values of the cells' counts stand above the noise.

    Of the signed square roots of the NB deviance (theta = 1) from one pooled profile, less their
    curve in log depth, each gene and then each cell scaled to unit variance: noise of one size, as
    the threshold asks for, while the deviance undoes most of the curvature that would make several
    linear axes of one.
    """
    if len(data) > AXES_CELLS:
        chosen = np.random.default_rng(seed).choice(len(data), AXES_CELLS, replace=False)
        data = data.take(np.sort(chosen)).in_memory()
    of_genes, size = data.counts.sum(0), np.exp(data.log_offset)
    seen = np.flatnonzero(of_genes)
    share = of_genes[seen] / size.sum()
    residuals = np.empty((len(data), len(seen)), dtype=np.float32)
    for cells, x in data.counts.of_genes(seen).blocks(CHUNK):
        x, mu = x.toarray().astype(np.float64), np.outer(size[cells], share)
        pooled = NegativeBinomial(torch.from_numpy(np.log(mu)), torch.zeros(()))
        residuals[cells] = np.sign(x - mu) * np.sqrt(pooled.deviance(x))
    depth = np.linalg.qr(np.vander(data.log_offset - data.log_offset.mean(), 4))[0]
    depth = depth.astype(residuals.dtype)
    # In place and with half the digits: 5,000 cells and 2,000 genes take 40 MB.
    for column, curve in zip(residuals.T, (depth.T @ residuals).T, strict=True):
        column -= depth @ curve
        column /= max(column.std(), 1e-12)
    for row in residuals:
        row /= max(row.std(), 1e-12)
    is_wide = residuals.shape[0] < residuals.shape[1]
    square = residuals @ residuals.T if is_wide else residuals.T @ residuals
    values = eigvalsh(square.astype(np.float64), overwrite_a=True)
    values = np.sqrt(np.maximum(values, 0.0))
    return int((values > hard_threshold(values, residuals.shape)).sum())
