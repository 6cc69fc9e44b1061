"""Reading cells with a trained model: posterior, expected counts, ELBO."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from omics_vae.data import CountData
from omics_vae.model import VAE
from omics_vae.priors import kl_standard_normal

CHUNK = 512  # cells decoded at once; bounds memory, changes no number


@torch.no_grad()
def embed(model: VAE, data: CountData, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of q(z|x) of every cell, each (cells, latent) float32."""
    model.eval().to(device)
    means, variances = [], []
    for x, log_offset in data.chunks(CHUNK, device):
        mean, log_variance = model.encode(x, log_offset)
        means.append(mean.cpu().numpy())
        variances.append(log_variance.exp().cpu().numpy())
    return np.concatenate(means), np.concatenate(variances)


@torch.no_grad()
def expected_counts(
    model: VAE, mean: np.ndarray, log_offset: np.ndarray, device: torch.device
) -> Iterator[tuple[slice, np.ndarray]]:
    """Chunks of mu (cells, genes), decoded at latent points ``mean`` (cells, latent).

    Yields the slice of the cells and float64 means.
    """
    model.eval().to(device)
    for start in range(0, len(mean), CHUNK):
        cells = slice(start, start + CHUNK)
        z = torch.from_numpy(np.ascontiguousarray(mean[cells], dtype=np.float32)).to(device)
        offset = torch.from_numpy(np.asarray(log_offset[cells], dtype=np.float32)).to(device)
        yield cells, model.decode(z, offset).double().exp().cpu().numpy()


def dispersion(model: VAE) -> np.ndarray:
    """theta (genes,) float64 of ``Var = mu + mu^2/theta``."""
    return model.clamped_log_theta().detach().double().exp().cpu().numpy()


@torch.no_grad()
def elbo_parts(
    model: VAE,
    data: CountData,
    device: torch.device,
    draws: int = 4,
    seed: int = 0,
    fixed: dict[int, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reconstruction (cells,) and KL (cells, latent) of every cell, in nats, dropout off.

    The reconstruction is averaged over ``draws`` samples of z. A seed gives the same samples at
    every call (common random numbers), so that two models, or one model at two steps, differ by
    what they are and not by luck. ELBO of a cell = reconstruction - sum of its KL.

    ``fixed`` sets latent dimensions to a value for all cells; their KL is then 0.
    """
    model.eval().to(device)
    reconstructions, kls = [], []
    dimensions = list(fixed or {})
    values = torch.tensor(list((fixed or {}).values()), device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for x, log_offset in data.chunks(CHUNK, device):
            mean, log_variance = model.encode(x, log_offset)
            scale = torch.exp(0.5 * log_variance)
            total = torch.zeros(len(x), device=device)
            for _ in range(draws):
                z = mean + scale * torch.randn_like(mean)
                z[:, dimensions] = values
                total += model.reconstruction(x, log_offset, z)
            reconstructions.append((total / draws).double().cpu().numpy())
            kl = kl_standard_normal(mean, log_variance)
            kl[:, dimensions] = 0.0
            kls.append(kl.double().cpu().numpy())
    return np.concatenate(reconstructions), np.concatenate(kls)


@dataclass(frozen=True)
class HeldOut:
    """The ELBO of some cells in nats a cell: mean, its standard error, and the mean parts."""

    elbo: float
    elbo_se: float
    reconstruction: float
    kl: np.ndarray  # (latent,)


def held_out_elbo(model: VAE, data: CountData, device: torch.device, draws: int = 4) -> HeldOut:
    """The ELBO at beta = 1 of cells that the optimiser does not see."""
    reconstruction, kl = elbo_parts(model, data, device, draws)
    elbo = reconstruction - kl.sum(1)
    return HeldOut(
        elbo=float(elbo.mean()),
        elbo_se=float(elbo.std(ddof=1) / np.sqrt(len(elbo))),
        reconstruction=float(reconstruction.mean()),
        kl=kl.mean(0),
    )
