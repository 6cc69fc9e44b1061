"""Where training starts: the null model of the training cells, one profile for all."""

import math

import numpy as np
import torch

from omics_vae.data import CountData
from omics_vae.model import LOG_VARIANCE_RANGE, VAE, VARIANCE_FLOOR

ZERO_LOGIT_START = -3.0  # 5 % of counts lost: the data must ask for more
PROFILE_WEIGHTS = 0.1  # of their random start: the profile is at first almost the same for all z
SMALLEST_SIZE_VARIANCE = 1e-4  # of a batch whose cells have all one library size


@torch.no_grad()
def start_from(model: VAE, data: CountData) -> None:
    """Start ``model`` as the null model of ``data``, which saves epochs.

    The profile is the pooled share (softmax), rate (free) or mean log count (Gaussian) of each
    gene; theta starts at 1, the mode of its prior; pseudo-cells are cells; the prior of a latent
    library size is the mean and variance of each batch and stays so.
    """
    a = model.architecture
    model.log_common_depth.fill_(float(np.median(data.log_offset)))
    for name in ("profile", "zero_logit", "log_theta_of_cell"):
        if hasattr(model, name):
            getattr(model, name).weight.mul_(PROFILE_WEIGHTS)
            getattr(model, name).bias.zero_()
    if a.likelihood == "gaussian":
        _start_gaussian(model, data)
    else:
        _start_counts(model, data)
    if a.likelihood == "zinb":
        model.zero_logit.bias.fill_(ZERO_LOGIT_START)
    if a.prior == "vamp":
        spread = np.linspace(0, len(data) - 1, a.prior_components).astype(int)
        pseudo_cells = model.view(data.chunk(spread, model.log_common_depth.device))
        model.prior.pseudo_cells.copy_(pseudo_cells)
    if a.library_size == "latent":
        _start_library_size(model, data)


def _start_counts(model: VAE, data: CountData) -> None:
    size = np.exp(data.log_offset)
    gene_sums = np.asarray(data.counts.sum(0), dtype=np.float64).ravel() + 0.5
    if model.architecture.decoder == "free":
        model.profile.bias.copy_(torch.from_numpy(np.log(gene_sums / size.sum())))
        return
    totals = np.asarray(data.counts.sum(1), dtype=np.float64).ravel()
    headroom = max(1.0, float((totals / size).max()))
    model.log_headroom.fill_(math.log(headroom))
    rest = max(1.0, headroom * size.sum() - gene_sums.sum())
    model.profile.bias.copy_(torch.from_numpy(np.log(np.append(gene_sums, rest))))


def _start_gaussian(model: VAE, data: CountData) -> None:
    """Mean and variance of the log counts, from those that are not 0: the rest add nothing."""
    scale = np.exp(float(model.log_common_depth) - data.log_offset)
    y = data.counts.multiply(scale[:, None]).log1p()
    mean = np.asarray(y.mean(0)).ravel()
    variance = np.asarray(y.multiply(y).mean(0)).ravel() - mean**2
    model.profile.bias.copy_(torch.from_numpy(mean))
    if model.architecture.gaussian_variance is None:
        learned = np.maximum(variance - VARIANCE_FLOOR, VARIANCE_FLOOR)
        model.log_gene_variance.copy_(torch.from_numpy(np.log(learned)))


def _start_library_size(model: VAE, data: CountData) -> None:
    model.size_posterior.weight.zero_()
    model.size_posterior.bias.copy_(torch.tensor([0.0, LOG_VARIANCE_RANGE[0] / 2]))
    for b in range(model.architecture.n_batches):
        ours = data.log_offset[data.batch == b]
        ours = ours if len(ours) else data.log_offset
        variance = max(float(ours.var()), SMALLEST_SIZE_VARIANCE)
        model.size_prior[b] = torch.tensor([float(ours.mean()), math.log(variance)])
