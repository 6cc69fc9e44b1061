"""Reading cells with a trained model: posterior, expected counts, ELBO, evidence, refinement."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from omics_vae import fused
from omics_vae.adam import Adam
from omics_vae.data import Batch, CountData
from omics_vae.likelihoods import Likelihood
from omics_vae.model import LOG_VARIANCE_RANGE, VAE, Posterior
from omics_vae.priors import gaussian_log_density

CHUNK = 512  # cells decoded at once; bounds memory, changes which random draws a cell gets


@dataclass(frozen=True)
class Embedding:
    """The posterior of cells: q(z|x) = N(mean, diag variance), and of their log library size."""

    mean: np.ndarray  # (cells, latent)
    variance: np.ndarray  # (cells, latent)
    log_size: np.ndarray  # (cells,)
    log_size_variance: np.ndarray  # (cells,); 0 where the library size is observed

    def take(self, cells: np.ndarray) -> "Embedding":
        """That of some cells: positions or a boolean mask."""
        return Embedding(*(getattr(self, name)[cells] for name in self.__dataclass_fields__))

    @classmethod
    def of(cls, posteriors: Iterable[Posterior]) -> "Embedding":
        """Chunks of posteriors, joined."""
        rows = []
        for q in posteriors:
            observed = q.log_size_variance is None
            variance = torch.zeros_like(q.log_size) if observed else q.log_size_variance.exp()
            rows.append((q.mean, q.log_variance.exp(), q.log_size, variance))
        return cls(*(torch.cat(chunks).cpu().numpy() for chunks in zip(*rows, strict=True)))


@contextmanager
def random_stream(seed: int, device: torch.device):
    """Torch's random numbers from ``seed`` on; those outside are left as they were.

    The same samples at every call (common random numbers): two models, or one model at two steps,
    then differ by what they are and not by luck.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def posteriors(
    model: VAE, data: CountData, device: torch.device, at: Embedding | None = None
) -> Iterator[tuple[slice, Batch, Posterior]]:
    """Chunks of cells with q(z|x): the encoder's, or a refined one given by ``at``."""
    model.eval().to(device)
    start = 0
    for batch in data.chunks(CHUNK, device):
        cells = slice(start, start + len(batch.x))
        start = cells.stop
        with torch.no_grad():
            q = model.encode(batch)
        yield cells, batch, q if at is None else _replaced(q, at, cells)


def _replaced(q: Posterior, at: Embedding, cells: slice) -> Posterior:
    def on_device(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[cells], dtype=np.float32)).to(q.mean)

    is_latent = q.log_size_variance is not None
    return q._replace(
        mean=on_device(at.mean),
        log_variance=on_device(np.log(at.variance)),
        log_size=on_device(at.log_size) if is_latent else q.log_size,
        log_size_variance=on_device(np.log(at.log_size_variance)) if is_latent else None,
    )


def log_likelihood(model: VAE, batch: Batch) -> Callable[[torch.Tensor, Posterior], torch.Tensor]:
    """log p(x|z) of each cell as a function of z and the posterior, without gradients."""
    if fused.has_likelihood(model):
        return fused.log_likelihood(model, batch)
    target = model.target(batch)
    return lambda z, q: model.decode(z, q, batch).log_prob(target).sum(-1)


def embed(model: VAE, data: CountData, device: torch.device) -> Embedding:
    """The amortized posterior of every cell."""
    return Embedding.of(q for _, _, q in posteriors(model, data, device))


@torch.no_grad()
def decoded(
    model: VAE, data: CountData, at: Embedding, device: torch.device
) -> Iterator[tuple[slice, np.ndarray, Likelihood]]:
    """Chunks of what the likelihood is of, and its distribution at the posterior mean of z.

    Yields the slice of the cells, float64 values (cells, genes) and a float64 likelihood. Replace
    the covariates of ``data`` to decode the cells as if they were of another batch.
    """
    for cells, batch, q in posteriors(model, data, device, at):
        observed = model.target(batch).double().cpu().numpy()
        yield cells, observed, model.decode(q.mean, q, batch).double()


@dataclass(frozen=True)
class CellElbo:
    """The ELBO of each cell and its parts, in nats; mean and standard error over the cells."""

    reconstruction: np.ndarray  # (cells,)
    kl: np.ndarray  # (cells,)
    kl_dimensions: np.ndarray  # (cells, latent)

    @property
    def of_cells(self) -> np.ndarray:
        return self.reconstruction - self.kl

    @property
    def mean(self) -> float:
        return float(self.of_cells.mean())

    @property
    def se(self) -> float:
        return float(self.of_cells.std(ddof=1) / np.sqrt(len(self.kl)))

    def objective(self, beta: float) -> float:
        """Mean of reconstruction - beta KL."""
        return float((self.reconstruction - beta * self.kl).mean())


@torch.no_grad()
def cell_elbo(
    model: VAE,
    data: CountData,
    device: torch.device,
    draws: int = 4,
    seed: int = 0,
    fixed: dict[int, float] | None = None,
    at: Embedding | None = None,
) -> CellElbo:
    """The ELBO of every cell, dropout off, averaged over ``draws`` samples of z.

    ``fixed`` sets latent dimensions to a value for all cells; their KL is then 0. ``at``: under
    these posteriors instead of the encoder's.
    """
    fixed, parts = fixed or {}, []
    with random_stream(seed, device):
        for _, batch, q in posteriors(model, data, device, at):
            log_p, prior = log_likelihood(model, batch), model.prior_of_z()
            free = [j for j in range(q.mean.shape[1]) if j not in fixed]
            prior = prior.take(free)
            reconstruction, kl = torch.zeros_like(q.log_size), torch.zeros_like(q.log_size)
            kl_dimensions = torch.zeros_like(q.mean)
            for _ in range(draws):
                z, drawn = model.draw(q)
                z[:, list(fixed)] = torch.tensor(list(fixed.values())).to(z)
                reconstruction += log_p(z, drawn) / draws
                whole, each = prior.kl(q.mean[:, free], q.log_variance[:, free], z[:, free])
                kl += whole / draws
                kl_dimensions[:, free] += each / draws
            parts.append((reconstruction, kl + model.size_kl(q, batch), kl_dimensions))
    columns = (torch.cat(chunks).double().cpu().numpy() for chunks in zip(*parts, strict=True))
    return CellElbo(*columns)


@dataclass(frozen=True)
class ImportanceWeighted:
    """An estimate of log p(x) of each cell, and of how many of its samples count."""

    log_p: np.ndarray  # (cells,) nats
    effective_samples: np.ndarray  # (cells,) from 1, where one sample decides, to all


@torch.no_grad()
def importance_weighted_evidence(
    model: VAE,
    data: CountData,
    device: torch.device,
    samples: int = 100,
    seed: int = 0,
    at: Embedding | None = None,
) -> ImportanceWeighted:
    """log p(x) of every cell from ``samples`` draws of its posterior.

    .. math:: \\log \\frac1K \\sum_k w_k, \\qquad
              w_k = \\frac{p(x|z_k)\\, p(z_k)}{q(z_k|x)}, \\qquad
              n_\\mathrm{eff} = \\frac{(\\sum_k w_k)^2}{\\sum_k w_k^2}

    On average at least the ELBO, at most log p(x), and rising with K. Memory does not grow with K
    but by a number a cell. Source: Burda et al. 2016, arXiv:1509.00519.
    """
    evidence, effective = [], []
    with random_stream(seed, device):
        for _, batch, q in posteriors(model, data, device, at):
            log_p, prior = log_likelihood(model, batch), model.prior_of_z()
            log_w = torch.stack(
                [_log_weight(model, batch, q, log_p, prior) for _ in range(samples)]
            )
            total = torch.logsumexp(log_w, 0)
            evidence.append(total - np.log(samples))
            effective.append(torch.exp(2.0 * total - torch.logsumexp(2.0 * log_w, 0)))
    return ImportanceWeighted(
        *(torch.cat(values).cpu().numpy() for values in (evidence, effective))
    )


def _log_weight(model, batch, q, log_p, prior) -> torch.Tensor:
    """log p(x, z) - log q(z|x) of one draw (cells,) float64."""
    z, drawn = model.draw(q)
    log_w = log_p(z, drawn).double()
    log_w += prior.log_prob(z) - gaussian_log_density(z, q.mean, q.log_variance).sum(-1)
    if q.log_size_variance is not None:
        log_w += gaussian_log_density(drawn.log_size, *model.size_prior[batch.batch].T)
        log_w -= gaussian_log_density(drawn.log_size, q.log_size, q.log_size_variance)
    return log_w


@dataclass(frozen=True)
class Refined:
    """Posteriors after refinement, and the ELBO of each cell before and after, in nats."""

    embedding: Embedding
    amortized: np.ndarray  # (cells,)
    refined: np.ndarray  # (cells,)

    @property
    def gap(self) -> np.ndarray:
        """The amortization gap (cells,): what the encoder loses against a posterior of one's own.

        Source: Cremer, Li & Duvenaud 2018, arXiv:1801.03558.
        """
        return self.refined - self.amortized


def refine(
    model: VAE,
    data: CountData,
    device: torch.device,
    steps: int,
    learning_rate: float,
    draws: int = 16,
    seed: int = 0,
) -> Refined:
    """Improve the posterior of each cell by gradient steps of its own, from the encoder's on.

    Adam on mean and log-variance, a sample of z a step; the decoder stays. A cell whose ELBO, over
    the same ``draws`` before and after, did not gain keeps the encoder's posterior. The ELBOs that
    are returned come from draws of their own, as those would flatter what they chose.
    Source: Kim et al. 2018, arXiv:1802.02550.
    """
    before = embed(model, data, device)
    moved = []
    with random_stream(seed + 1, device):
        for _, batch, q in posteriors(model, data, device):
            moved.append(_climb(model, batch, q, steps, learning_rate))
    after = Embedding.of(moved)
    elbo = [cell_elbo(model, data, device, draws, seed, at=at).of_cells for at in (before, after)]
    gained, kept = elbo[1] > elbo[0], {}
    for name in Embedding.__dataclass_fields__:
        old, new = getattr(before, name), getattr(after, name)
        kept[name] = np.where(gained[:, None] if old.ndim == 2 else gained, new, old)
    found = Embedding(**kept)
    fresh = seed + 2
    elbo = [cell_elbo(model, data, device, draws, fresh, at=at).of_cells for at in (before, found)]
    return Refined(found, *elbo)


def _climb(model: VAE, batch: Batch, q: Posterior, steps: int, learning_rate: float) -> Posterior:
    names = ["mean", "log_variance"]
    if q.log_size_variance is not None:
        names += ["log_size", "log_size_variance"]
    leaves = [getattr(q, name).detach().clone().requires_grad_() for name in names]
    optimizer = Adam([{"params": leaves, "lr": learning_rate, "weight_decay": 0.0}])
    for _ in range(steps):
        parts = model.elbo(batch, q._replace(**dict(zip(names, leaves, strict=True))))
        loss = (parts.kl - parts.reconstruction).sum()
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = gradient
        optimizer.step()
        for name, leaf in zip(names, leaves, strict=True):
            if name.endswith("variance"):
                leaf.data.clamp_(*LOG_VARIANCE_RANGE)
    return q._replace(**{name: leaf.detach() for name, leaf in zip(names, leaves, strict=True)})
