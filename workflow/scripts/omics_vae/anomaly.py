"""From residuals and latent positions to calibrated p-values and the genes behind them.

No single score sees every kind of anomaly, so several channels of evidence are computed for each
cell, freed of their dependence on depth, and combined. The p-value comes from calibration cells,
trusted normal cells that the model has not seen: it is valid whatever the channels are worth.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.polynomial import Polynomial
from scipy.linalg import eigh

from omics_vae.likelihoods import SMALLEST_P, Likelihood

# Standardisation is not trusted to extrapolate: beyond so many SD of log depth it stays constant.
DEPTH_RANGE = 2.5
# A gene is rare when a reference cell of median depth has fewer expected counts of it.
RARE_EXPECTED = 0.003
# theta of genes that the model does not decode: the mode of the model's own prior.
POOLED_THETA = 1.0
# Leading axes of the residuals of all held-out cells: where a group of query cells leaves the model
# in the same direction, they are that direction. Two to five did alike on held-out cell types.
SHARED_AXES = 3
RESIDUAL_LIMIT = 10.0  # SDs; one huge count must not become an axis of its own


def residual_channels(
    x: np.ndarray, expected: Likelihood, program_genes: int
) -> dict[str, np.ndarray]:
    """How badly the counts of each cell fit what the model expects of it.

    ``program``: mean -log p of the ``program_genes`` most surprising genes; ``single_gene``: that
    of the most surprising one; ``profile``: deviance summed over all genes.
    Arguments: ``x`` (cells, genes) and its distribution. Returns (cells,) each.
    """
    surprise = expected.surprise(x)
    top = min(program_genes, surprise.shape[1])
    worst = np.partition(surprise, surprise.shape[1] - top, axis=1)[:, -top:]
    return {
        "program": np.log1p(worst.mean(1)),
        "single_gene": np.log1p(surprise.max(1)),
        "profile": np.log1p(expected.deviance(x).sum(1)),
    }


def pearson_residuals(x: np.ndarray, expected: Likelihood) -> np.ndarray:
    """(x - mean) / SD of each count, clipped at +-10 (cells, genes)."""
    return np.clip(expected.pearson_residual(x), -RESIDUAL_LIMIT, RESIDUAL_LIMIT)


def shared_axes(n: int, moment: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The leading principal axes (genes, axes) of the residuals of ``n`` cells.

    From their summed outer products (genes, genes) and their sum (genes,), so that no dense matrix
    of all cells is needed. The cells are all held-out ones, query included: the axes do not tell
    calibration from query cells, so p-values that rank one among the other stay valid.
    """
    covariance = moment / n - np.outer(total, total) / n**2
    last = len(total) - 1
    return eigh(covariance, subset_by_index=[max(0, last - SHARED_AXES + 1), last])[1]


def shared_program_channel(place: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """log(1 + squared distance from the ``normal`` cells along the shared axes) (cells,).

    ``place`` (cells, axes): residuals projected on :func:`shared_axes`; distance in SDs of the
    normal cells, axis by axis.
    """
    z = (place - place[normal].mean(0)) / np.maximum(place[normal].std(0), 1e-12)
    return np.log1p(np.square(z).sum(1))


def pooled_rates(counts: sp.csr_matrix, library_size: np.ndarray) -> np.ndarray:
    """Expected counts of each gene per unit of library size, pooled over reference cells (genes,).

    Half a count is added, so that a gene never seen has a small rate and not none.
    """
    return (np.asarray(counts.sum(0), dtype=np.float64).ravel() + 0.5) / library_size.sum()


def unseen_genes_channel(
    counts: sp.csr_matrix, library_size: np.ndarray, rates: np.ndarray, median_size: float
) -> np.ndarray | None:
    """Counts in genes that the reference hardly shows, against their expectation (cells,).

    (observed - expected) / sqrt(expected + 1), over all genes rare in the reference. None where no
    gene is rare, as in a targeted panel.
    """
    rare = rates * median_size < RARE_EXPECTED
    if not rare.any():
        return None
    observed = np.asarray(counts[:, rare].sum(1), dtype=np.float64).ravel()
    expected = library_size * rates[rare].sum()
    return (observed - expected) / np.sqrt(expected + 1.0)


@dataclass(frozen=True)
class DepthStandard:
    """Mean and spread of a score as a function of log depth, learned on normal cells.

    Mean: quadratic in log depth; spread: linear, from absolute residuals, never below a quarter of
    the average. Few parameters, because each one bends the calibration cells' ranks a little.
    """

    centre: float
    scale: float
    mean_coefficients: np.ndarray
    spread_coefficients: np.ndarray
    smallest_spread: float

    @classmethod
    def fit(cls, score: np.ndarray, log_depth: np.ndarray) -> "DepthStandard":
        """Least squares on scores (cells,) and log library sizes (cells,) of normal cells."""
        centre, scale = float(log_depth.mean()), float(log_depth.std()) or 1.0
        depth = np.clip((log_depth - centre) / scale, -DEPTH_RANGE, DEPTH_RANGE)
        mean = np.linalg.lstsq(np.vander(depth, 3), score, rcond=None)[0]
        # The mean of |e| of a normal residual is its SD times sqrt(2/pi).
        spread = np.abs(score - np.vander(depth, 3) @ mean) * np.sqrt(np.pi / 2)
        coefficients = np.linalg.lstsq(np.vander(depth, 2), spread, rcond=None)[0]
        # A constant score has no spread at all; any positive number serves.
        smallest = max(0.25 * float(spread.mean()), 1e-12)
        return cls(centre, scale, mean, coefficients, smallest)

    def apply(self, score: np.ndarray, log_depth: np.ndarray) -> np.ndarray:
        """Scores of any cells in SDs above what is normal at their depth (cells,)."""
        depth = (log_depth - self.centre) / self.scale
        depth = np.clip(depth, -DEPTH_RANGE, DEPTH_RANGE)
        spread = np.maximum(np.vander(depth, 2) @ self.spread_coefficients, self.smallest_spread)
        return (score - np.vander(depth, 3) @ self.mean_coefficients) / spread


def depth_line(score: np.ndarray, log_depth: np.ndarray) -> Polynomial:
    """The straight line in log depth that fits the scores of normal cells (least squares)."""
    degree = 1 if np.ptp(log_depth) > 0 else 0
    return Polynomial.fit(log_depth, score, degree)


def conformal_p(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """p-value of each score: its rank among the calibration scores, larger is odder.

    .. math:: p = \\frac{1 + \\#\\{\\text{calibration} \\ge s\\}}{n + 1}

    P(p <= t) <= t for a cell exchangeable with the calibration cells; Benjamini-Hochberg on these
    p-values controls the FDR. Source: Bates et al. 2023, doi:10.1214/22-AOS2244.
    """
    ordered = np.sort(calibration)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1.0 + at_least) / (len(ordered) + 1.0)


def calibration_p(calibration: np.ndarray) -> np.ndarray:
    """Each calibration cell's p-value against the others, on the scale of :func:`conformal_p`."""
    return conformal_p(calibration, calibration) - 1.0 / (len(calibration) + 1.0)


def cauchy_combination(p: np.ndarray) -> np.ndarray:
    """One p-value from several dependent ones (channels, cells) -> (cells,).

    .. math:: T = \\frac1K \\sum_k \\tan(\\pi (1/2 - p_k)),\\quad p = 1/2 - \\arctan(T)/\\pi

    p = 1 gives T = -infinity, hence 1. Source: Liu & Xie 2020, doi:10.1080/01621459.2018.1554485.
    """
    # Each half from its own end: near 1, pi * p has no digits left for the distance to the pole.
    upper_half = p > 0.5
    with np.errstate(divide="ignore"):
        cotangent = 1.0 / np.tan(np.pi * np.where(upper_half, 1.0 - p, p))
    statistic = np.mean(np.where(upper_half, -cotangent, cotangent), axis=0)
    return np.arctan2(1.0, statistic) / np.pi


@dataclass(frozen=True)
class Verdict:
    """Combined evidence of calibration and query cells; ``p_*`` one entry a channel."""

    score: np.ndarray  # (cells,) -log10 of the combined p, less what is normal at the depth
    p_value: np.ndarray  # (cells,) conformal
    p_channel: dict[str, np.ndarray]


def combine_channels(
    channels: dict[str, np.ndarray],
    kinds: dict[str, str],
    is_calibration: np.ndarray,
    log_depth: np.ndarray,
) -> Verdict:
    """Channels -> mean of each kind -> p-values -> Cauchy combination -> conformal p-value.

    ``channels``: standardised scores (cells,); ``kinds``: the kind of each; ``log_depth`` (cells,).
    Channels that are each free of depth in mean and spread can still meet more often at one depth
    than at another, so a line in log depth is taken off the combination. The combination of
    dependent p-values is only approximately one itself; ranking it among the calibration cells'
    combinations makes it exact again.
    """
    p_channel = {name: _ranked(score, is_calibration) for name, score in channels.items()}
    members: dict[str, list] = {}
    for name, score in channels.items():
        members.setdefault(kinds[name], []).append(score)
    p_kind = [_ranked(np.mean(scores, axis=0), is_calibration) for scores in members.values()]
    # A query cell less odd than all calibration cells has p = 1, which would silence every other
    # channel; it counts as the least odd calibration cell.
    n = int(is_calibration.sum())
    p = np.minimum(np.stack(p_kind), n / (n + 1.0))
    combined = -np.log10(np.maximum(cauchy_combination(p), SMALLEST_P))
    score = combined - depth_line(combined[is_calibration], log_depth[is_calibration])(log_depth)
    return Verdict(score, _ranked(score, is_calibration), p_channel)


def _ranked(score: np.ndarray, is_calibration: np.ndarray) -> np.ndarray:
    """Conformal p of query cells; calibration cells against the others (cells,)."""
    p = conformal_p(score, score[is_calibration])
    p[is_calibration] = calibration_p(score[is_calibration])
    return p
