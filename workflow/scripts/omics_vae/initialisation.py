"""Where training starts: the null model of the training cells, one profile for all."""

import math

import numpy as np
import torch

from omics_vae.data import CountData
from omics_vae.model import LOG_VARIANCE_RANGE, VAE, VARIANCE_FLOOR

ZERO_LOGIT_START = -3.0  # 5 % of counts lost: the data must ask for more
PROFILE_WEIGHTS = 0.1  # of their random start: the profile is at first almost the same for all z
LINEAR_CELLS = 1000  # from so many at most a linear model's first components are found
CLIP = 2.5  # robust SDs; farther residuals count as at this distance
CLIP_ROUNDS = 6
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
    if a.n_layers == 0 and a.skip == "none":
        _start_linear(model, data)


def _start_counts(model: VAE, data: CountData) -> None:
    size = np.exp(data.log_offset)
    gene_sums = data.counts.sum(0) + 0.5
    if model.architecture.decoder == "free":
        model.profile.bias.copy_(torch.from_numpy(np.log(gene_sums / size.sum())))
        return
    totals = data.counts.sum(1)
    headroom = max(1.0, float((totals / size).max()))
    model.log_headroom.fill_(math.log(headroom))
    rest = max(1.0, headroom * size.sum() - gene_sums.sum())
    model.profile.bias.copy_(torch.from_numpy(np.log(np.append(gene_sums, rest))))


def _start_gaussian(model: VAE, data: CountData) -> None:
    """Mean and variance of the log counts, from those that are not 0: the rest add nothing."""
    scale = np.exp(float(model.log_common_depth) - data.log_offset)
    sums = np.zeros((2, model.architecture.n_genes))
    for rows, x in data.counts.blocks():
        y = x.multiply(scale[rows, None]).log1p()
        sums += [np.asarray(v.sum(0)).ravel() for v in (y, y.multiply(y))]
    mean, square = sums / len(data)
    variance = square - mean**2
    model.profile.bias.copy_(torch.from_numpy(mean))
    if model.architecture.gaussian_variance is None:
        learned = np.maximum(variance - VARIANCE_FLOOR, VARIANCE_FLOOR)
        model.log_gene_variance.copy_(torch.from_numpy(np.log(learned)))


def _start_linear(model: VAE, data: CountData) -> None:
    """A linear encoder and decoder start at the principal components of what the encoder sees.

    From noise, some 60 samples of bulk counts overfit the encoder long before the decoder has found
    the loadings. Residuals beyond CLIP robust SDs are clipped and the components found again: in a
    cohort, samples with outliers are among those that train. The encoder is the posterior mean of
    the factor model with these loadings; rates and theta follow from the clipped counts.
    """
    a, some = model.architecture, np.linspace(0, len(data) - 1, min(len(data), LINEAR_CELLS))
    data = data.take(np.unique(some.astype(int)))
    batch = data.chunk(slice(None), model.log_common_depth.device)
    y = model.view(batch).double().cpu().numpy()
    mean, loadings, noise, clipped = _clipped_components(y, min(a.n_latent, len(y) - 1))
    # Of a loading's square, noise^2 / cells is error. What is left over all genes is the variance
    # of its prior, and each loading is drawn to 0 as far as its error says (empirical Bayes).
    error = np.square(noise)[:, None] / len(y)
    signal = np.maximum((np.square(loadings) - error).mean(0), 0.0)
    loadings = loadings * signal / (signal + error)
    per_noise = loadings / np.square(noise)[:, None]
    precision = np.eye(loadings.shape[1]) + loadings.T @ per_noise
    encoder = np.linalg.solve(precision, per_noise.T)
    k, n_genes = len(encoder), a.n_genes
    for layer in (model.posterior_mean, model.posterior_log_variance, model.profile):
        layer.weight.zero_()
    model.posterior_mean.weight[:k, :n_genes] = torch.from_numpy(encoder).to(batch.x)
    model.posterior_mean.bias.zero_()[:k] = torch.from_numpy(-encoder @ mean).to(batch.x)
    variance = np.diag(np.linalg.inv(precision))
    model.posterior_log_variance.bias.zero_()[:k] = torch.from_numpy(np.log(variance)).to(batch.x)
    model.profile.weight[:n_genes, :k] = torch.from_numpy(loadings).to(batch.x)
    if a.likelihood == "gaussian":
        return
    q = model.encode(batch)
    depth = torch.exp(batch.log_offset - model.log_common_depth)[:, None]
    x = torch.from_numpy(np.maximum(np.expm1(clipped), 0.0)).to(batch.x) * depth
    for _ in range(3):  # a softmax couples the genes
        mu = model.decode(q.mean, q, batch).mean
        model.profile.bias[:n_genes] += torch.log((x.sum(0) + 0.5) / (mu.sum(0) + 0.5))
    if hasattr(model, "log_theta"):
        mu = model.decode(q.mean, q, batch).mean
        excess = ((x - mu).square() - mu).sum(0)
        theta = mu.square().sum(0) / excess.clamp_min(1e-3 * mu.square().sum(0))
        model.log_theta.copy_(torch.log(theta.clamp(0.1, 100.0)).expand_as(model.log_theta))


def _clipped_components(y: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """Mean (genes,), loadings (genes, k), residual SD (genes,) and the clipped values of y.

    ``y`` (cells, genes). Factors have variance 1.
    """
    clipped, n = y, len(y)
    for _ in range(CLIP_ROUNDS):
        mean = clipped.mean(0)
        left, size, right = np.linalg.svd(clipped - mean, full_matrices=False)
        fit = mean + (left[:, :k] * size[:k]) @ right[:k]
        residual = y - fit
        lost = np.sqrt(n / max(1, n - k))  # degrees of freedom
        spread = lost * np.maximum(
            1.4826 * np.median(np.abs(residual), axis=0),  # the SD of a normal residual
            0.7 * residual.std(0),  # of a gene that is mostly 0, the median says nothing
        )
        clipped = fit + np.clip(residual, -CLIP * spread, CLIP * spread)
    return mean, right[:k].T * size[:k] / np.sqrt(n), np.maximum(spread, 0.03), clipped


def _start_library_size(model: VAE, data: CountData) -> None:
    model.size_posterior.weight.zero_()
    model.size_posterior.bias.copy_(torch.tensor([0.0, LOG_VARIANCE_RANGE[0] / 2]))
    for b in range(model.architecture.n_batches):
        ours = data.log_offset[data.batch == b]
        ours = ours if len(ours) else data.log_offset
        variance = max(float(ours.var()), SMALLEST_SIZE_VARIANCE)
        model.size_prior[b] = torch.tensor([float(ours.mean()), math.log(variance)])
