"""What a normal cell of each reference group would count, and how far other cells are from it.

Two expectations of a cell's counts, both at its depth and with its covariates: the model's, decoded
at the cell's own latent position, and that of a normal cell of its nearest reference group. A cell
that the model places aside and then decodes well differs from the second alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.spatial import cKDTree

from held_cells import Cells, some_of
from omics_vae.anomaly import pooled_rates
from omics_vae.inference import decoded
from omics_vae.likelihoods import Likelihood, NegativeBinomial
from omics_vae.model import VAE
from reference_groups import ReferenceGroups, reference_groups

PROFILE_CELLS = 5000  # reference cells that make the profiles
# A count of its own for each gene and group: a gene not seen there has a small rate and not none.
PSEUDO_COUNT = 1.0
# theta where the reference says nothing of it (rare genes): the mode of the model's own prior.
PRIOR_THETA = 1.0
HELD_OUT_CELLS = 2000  # that say how far normal cells are from what is expected
NORMAL_CELLS = 20_000  # that say what depth and damage are usual in a group
NEIGHBOURS = 10
RESIDUAL_LIMIT = 10.0  # SDs; one huge count must not make a pattern


@dataclass(frozen=True)
class Comparison:
    """Some cells beside their two expectations; matrices are (cells, all genes) float64."""

    cells: slice
    counts: np.ndarray
    expected: np.ndarray  # the model's counts; of genes outside it the reference's pooled rate
    reference: np.ndarray  # counts of a normal cell of the nearest reference group
    decoded_shift: np.ndarray  # (cells, model genes) log2 decoded here / at the group's mean
    residual: np.ndarray  # mean of the two clipped Pearson residuals
    surprise: Callable[[], np.ndarray]  # -log of the two-sided p against ``expected``, signed


@dataclass(frozen=True)
class ReferenceProfile:
    """Expected counts of the reference groups, and their scatter."""

    groups: ReferenceGroups
    mean_latent: np.ndarray  # (groups, latent)
    rates: np.ndarray  # (genes,) counts per unit of library size, all groups together
    ratio: np.ndarray  # (groups, genes) observed over decoded counts of the group
    inverse_theta: np.ndarray  # (genes,) so that the variance is mu + mu^2 inverse_theta
    seen: np.ndarray  # (groups, genes) counts that ``ratio`` was learned from
    share: np.ndarray  # (groups, genes) of the group's counts; sums to 1

    @classmethod
    def fit(cls, model: VAE, reference: Cells, groups: ReferenceGroups, seed: int, device):
        """From the cells that the groups are of.

        Decoding the mean of a group is not the mean of what is decoded, so the group's observed
        counts correct it, gene by gene. theta by moments over all groups:

        .. math:: 1/\\theta = \\frac{\\sum (x-\\mu)^2 - \\mu + 1/\\theta_0}{\\sum \\mu^2 + 1}
        """
        n_groups = len(groups.names)
        mean = np.stack([reference.latent[groups.code == k].mean(0) for k in range(n_groups)])
        rates = pooled_rates(reference.counts, reference.size)
        used = np.flatnonzero(groups.code >= 0)
        if len(used) > PROFILE_CELLS:
            rng = np.random.default_rng(seed)
            used = np.sort(rng.choice(used, PROFILE_CELLS, replace=False))
        cells, code = reference.take(used), groups.code[used]
        sums = np.zeros((5, n_groups, len(rates)))  # of x, b, x^2, x b, b^2 in each group
        for chunk, b, *_ in _decoded_at(model, cells, mean[code], rates, device):
            x = cells.counts[chunk].toarray().astype(np.float64)
            for k in np.unique(code[chunk]):
                of_k = code[chunk] == k
                xk, bk = x[of_k], b[of_k]
                sums[:, k] += [v.sum(0) for v in (xk, bk, xk * xk, xk * bk, bk * bk)]
        x, b, xx, xb, bb = sums
        ratio = (x + PSEUDO_COUNT) / (b + PSEUDO_COUNT)
        square = xx - 2.0 * ratio * xb + ratio**2 * bb
        excess = (square - ratio * b).sum(0) + 1.0 / PRIOR_THETA
        inverse = np.clip(excess / ((ratio**2 * bb).sum(0) + 1.0), 1e-3, 1e2)
        share = np.stack([np.maximum(b[k] * ratio[k], 1e-12) for k in range(n_groups)])
        share /= share.sum(1, keepdims=True)
        return cls(groups, mean, rates, ratio, inverse, x, share)

    def variance(self, mean: np.ndarray) -> np.ndarray:
        """Of counts with this mean (cells, genes)."""
        return mean + mean**2 * self.inverse_theta

    def pearson(self, x: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """(x - mean) / SD, clipped at +-10."""
        residual = (x - mean) / np.sqrt(self.variance(mean))
        return np.clip(residual, -RESIDUAL_LIMIT, RESIDUAL_LIMIT)

    def compare(
        self, model: VAE, cells: Cells, nearest: np.ndarray, device
    ) -> Iterator[Comparison]:
        """``cells`` in chunks beside what is expected; ``nearest``: their groups' positions."""
        own = _decoded_at(model, cells, cells.latent, self.rates, device)
        normal = _decoded_at(model, cells, self.mean_latent[nearest], self.rates, device)
        for (chunk, expected, x_model, likelihood), (_, at_mean, *_) in zip(
            own, normal, strict=True
        ):
            x = cells.counts[chunk].toarray().astype(np.float64)
            reference = at_mean * self.ratio[nearest[chunk]]
            residual, in_model = self.pearson(x, expected), cells.in_model
            residual[:, in_model] = np.clip(
                likelihood.pearson_residual(x_model), -RESIDUAL_LIMIT, RESIDUAL_LIMIT
            )
            shift = np.log2((expected[:, in_model] + 0.5) / (at_mean[:, in_model] + 0.5))
            yield Comparison(
                cells=chunk,
                counts=x,
                expected=expected,
                reference=reference,
                decoded_shift=shift,
                residual=0.5 * (residual + self.pearson(x, reference)),
                surprise=partial(self._surprise, x, expected, in_model, x_model, likelihood),
            )

    def _surprise(
        self,
        x: np.ndarray,
        expected: np.ndarray,
        in_model: np.ndarray,
        x_model: np.ndarray,
        likelihood: Likelihood,
    ) -> np.ndarray:
        log_theta = torch.from_numpy(-np.log(self.inverse_theta))
        pooled = NegativeBinomial(torch.from_numpy(np.log(expected)), log_theta)
        surprise = pooled.surprise(x)
        surprise[:, in_model] = likelihood.surprise(x_model)
        return surprise * np.where(x > expected, 1.0, -1.0)


def _decoded_at(model: VAE, cells: Cells, latent: np.ndarray, rates: np.ndarray, device):
    """Chunks: cells, expected counts of all genes at ``latent``, the model's x and likelihood."""
    at = replace(cells.posterior, mean=latent.astype(np.float32))
    for chunk, x, likelihood in decoded(model, cells.data, at, device):
        expected = cells.size[chunk][:, None] * rates
        counts = model.as_counts(likelihood.mean, cells.size[chunk])
        # A Gaussian of log counts may expect less than none.
        expected[:, cells.in_model] = np.maximum(counts, 1e-8)
        yield chunk, expected, x, likelihood


@dataclass(frozen=True)
class Reference:
    """The normal cells that flagged ones are held against."""

    profile: ReferenceProfile
    cells: Cells  # of train, validation and calibration; some of many
    nearest: np.ndarray  # their groups
    made_of: Cells  # train and validation, which made the profile
    held_out: Cells  # calibration, or without a query what the model scores; some of many
    nearest_held_out: np.ndarray

    @classmethod
    def of(cls, model: VAE, cells: Cells, seed: int, device) -> "Reference":
        """From the reference cells among ``cells``."""
        made_of, held_out = cells.of("train", "validation"), cells.of("calibration")
        held_out = held_out if len(held_out) else cells.of("query")
        held_out = held_out.take(some_of(held_out.obs.index, HELD_OUT_CELLS))
        groups = reference_groups(made_of.latent, made_of.obs, seed)
        profile = ReferenceProfile.fit(model, made_of, groups, seed, device)
        normal = cells.of("train", "validation", "calibration")
        normal = normal.take(some_of(normal.obs.index, NORMAL_CELLS))
        nearest = groups.nearest(normal.latent)
        return cls(profile, normal, nearest, made_of, held_out, groups.nearest(held_out.latent))

    def distance(self, latent: np.ndarray) -> np.ndarray:
        """Mean distance to the nearest reference cells; 1 is the median of held-out normal ones."""
        tree, k = cKDTree(self.made_of.latent), min(NEIGHBOURS, len(self.made_of))

        def mean(points: np.ndarray) -> np.ndarray:
            return np.reshape(tree.query(points, k=k)[0], (len(points), k)).mean(1)

        return mean(latent) / max(float(np.median(mean(self.held_out.latent))), 1e-12)
