"""From residuals and latent positions to calibrated p-values and the genes behind them.

No single score sees every kind of anomaly, so several channels of evidence are computed for each
cell, freed of their dependence on depth, and combined. The p-value comes from calibration cells,
trusted normal cells that the model has not seen: it is valid whatever the channels are worth.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import rankdata

from omics_vae.counts import Counts
from omics_vae.likelihoods import SMALLEST_P, Likelihood

# Standardisation is not trusted to extrapolate: beyond so many SD of log depth it stays constant.
DEPTH_RANGE = 2.5
# A gene is rare when a reference cell of median depth has fewer expected counts of it.
RARE_EXPECTED = 0.003
# theta of genes that the model does not decode: the mode of the model's own prior.
POOLED_THETA = 1.0
# Half of the weight of a cell's verdict is the company it keeps, half all that it shows by itself.
GROUP_WEIGHT = 0.5
# A kind of evidence that finds a cell usual hardly speaks against the others: its p is taken for no
# larger. Without this, a p near 1 (a shallow cell's residuals) would silence all other kinds.
USUAL_P = 0.8
# A calibration cell so many robust SDs above the median of its kind of evidence is left out. In 20
# clean splits of 435 cells seven cells were; of 5 % foreign cells two thirds are, near relatives of
# a known type not (39 splits of 13 public sets).
CONTAMINATED = {"group": 4.5, "residuals": 8.0}


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


def pooled_rates(counts: Counts | sp.csr_matrix, library_size: np.ndarray) -> np.ndarray:
    """Expected counts of each gene per unit of library size, pooled over reference cells (genes,).

    Half a count is added, so that a gene never seen has a small rate and not none.
    """
    return (np.asarray(counts.sum(0), dtype=np.float64).ravel() + 0.5) / library_size.sum()


def unseen_genes_channel(
    counts: Counts | sp.csr_matrix, library_size: np.ndarray, rates: np.ndarray, median_size: float
) -> np.ndarray | None:
    """Counts in genes that the reference hardly shows, against their expectation (cells,).

    (observed - expected) / sqrt(expected + 1), over all genes rare in the reference. None where no
    gene is rare, as in a targeted panel.
    """
    rare = rates * median_size < RARE_EXPECTED
    if not rare.any():
        return None
    observed = Counts.of(counts).of_genes(rare).sum(1)
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


def depth_slope(score: np.ndarray, log_depth: np.ndarray) -> float:
    """The slope b for which score - b log depth has no rank correlation with depth (Spearman's 0).

    By ranks, because the scores are skewed: a least-squares line makes their mean flat in depth and
    leaves most cells on a slope. 0 where scores or depths do not vary.
    """
    if np.ptp(log_depth) == 0 or np.ptp(score) == 0:
        return 0.0
    depth_rank = rankdata(log_depth) - (len(score) + 1) / 2

    def correlation(slope: float) -> float:
        return float(depth_rank @ rankdata(score - slope * log_depth))

    # Far enough out, depth alone decides the ranks.
    end = np.std(score) / np.std(log_depth)
    while correlation(-end) <= 0 or correlation(end) >= 0:
        end *= 2.0
    return float(brentq(correlation, -end, end, xtol=1e-6 * end))


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


def tail_p(score: np.ndarray) -> np.ndarray:
    """p-value of each score among its own kind, without calibration cells (cells,).

    The rank up to the 90 % quantile; beyond it, where anomalies may be, an exponential tail whose
    scale comes from below it:

    .. math:: p = \\tfrac1{10} \\exp(-(s - q_{90}) / \\lambda), \\qquad
              \\lambda = (q_{90} - q_{50}) / \\log 5

    Too large for tails lighter than an exponential one, too small for heavier ones, and wrong where
    more than a tenth of the cells is odd: good for a ranking, no guarantee.
    """
    middle, upper = np.quantile(score, [0.5, 0.9])
    scale = max(float(upper - middle), 1e-12) / np.log(5.0)
    rank = len(score) - np.searchsorted(np.sort(score), score, side="left")
    tail = 0.1 * np.exp(-np.maximum(score - upper, 0.0) / scale)
    return np.where(score > upper, np.maximum(tail, SMALLEST_P), rank / len(score))


def conditional_p(p: np.ndarray, n: int, delta: float) -> np.ndarray:
    """Conformal p-values that are valid given the ``n`` calibration cells, with confidence.

    .. math:: p' = b_{(n+1) p},\\qquad b_{n+1-i} = 1 - \\delta^{1/k}
              \\left( \\frac{i (i-1) \\cdots (i-k+1)}{n (n-1) \\cdots (n-k+1)} \\right)^{1/k},
              \\quad k = \\lceil n / 2 \\rceil

    A marginal p-value is valid on average over calibration sets; with probability 1 - ``delta`` the
    set at hand is one for which P(p' <= t) <= t at every t. Source: Bates et al. 2023 (the
    generalized Simes inequality), doi:10.1214/22-AOS2244.
    """
    k = (n + 1) // 2
    i = np.arange(n, 0, -1)  # i of b_1, b_2, ..., b_n
    whole = i >= k
    falling = gammaln(i[whole] + 1) - gammaln(i[whole] - k + 1)
    falling -= gammaln(n + 1) - gammaln(n - k + 1)
    b = np.ones(n + 2)
    b[1 : n + 1][whole] = -np.expm1((np.log(delta) + falling) / k)
    return b[np.rint(np.asarray(p) * (n + 1)).astype(int)]


def cauchy_combination(p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One p-value from several dependent ones (kinds, cells) -> (cells,).

    .. math:: T = \\sum_k w_k \\tan(\\pi (1/2 - p_k)),\\quad p = 1/2 - \\arctan(T)/\\pi

    ``weights`` (kinds,) sum to one. p = 1 gives T = -infinity, hence 1.
    Source: Liu & Xie 2020, doi:10.1080/01621459.2018.1554485.
    """
    # Each half from its own end: near 1, pi * p has no digits left for the distance to the pole.
    upper_half = p > 0.5
    with np.errstate(divide="ignore"):
        cotangent = 1.0 / np.tan(np.pi * np.where(upper_half, 1.0 - p, p))
    statistic = weights @ np.where(upper_half, -cotangent, cotangent)
    return np.arctan2(1.0, statistic) / np.pi


def kind_scores(channels: dict[str, np.ndarray], kinds: dict[str, str]) -> dict[str, np.ndarray]:
    """The mean of the standardised channels of each kind (cells,).

    Channels of a kind are alike, so they share one vote.
    """
    members: dict[str, list] = {}
    for name, score in channels.items():
        members.setdefault(kinds[name], []).append(score)
    return {kind: np.mean(scores, axis=0) for kind, scores in members.items()}


def kind_weights(kinds: list[str]) -> np.ndarray:
    """GROUP_WEIGHT for the kind ``group``, the rest shared evenly by the others."""
    if "group" not in kinds or len(kinds) == 1:
        return np.full(len(kinds), 1.0 / len(kinds))
    other = (1.0 - GROUP_WEIGHT) / (len(kinds) - 1)
    return np.array([GROUP_WEIGHT if kind == "group" else other for kind in kinds])


def robust_sds(score: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """(score - median) / (1.4826 MAD), both of the ``normal`` cells (cells,).

    Neither moves much with foreign cells among the normal ones, as a mean and an SD would. Where
    more than half of the normal cells are alike, so that there is no MAD, the SD serves.
    """
    centre = np.median(score[normal])
    away = np.abs(score[normal] - centre)
    spread = 1.4826 * np.median(away) or float(np.sqrt(np.mean(away**2))) or 1.0
    return (score - centre) / spread


def contaminated(scores: dict[str, np.ndarray]) -> np.ndarray:
    """Cells far from normal by any kind of evidence, in robust SDs (cells,) bool.

    Beyond ``CONTAMINATED``. A few of them at the top of the ranking would cost every discovery.
    """
    found = np.zeros(len(next(iter(scores.values()))), dtype=bool)
    for kind, limit in CONTAMINATED.items():
        if kind in scores:
            found |= scores[kind] > limit
    return found


def combine_kinds(
    scores: dict[str, np.ndarray], is_calibration: np.ndarray, log_depth: np.ndarray
) -> np.ndarray:
    """Combined evidence of each cell: -log10 of the combined p, less what is normal at the depth.

    ``scores``: of each kind (cells,); ``log_depth`` (cells,). Kinds of evidence that are each free
    of depth in mean and spread can still meet more often at one depth than at another, so a slope
    in log depth is taken off (:func:`depth_slope`). The combination of dependent p-values is only
    approximately a p-value itself; its rank among the calibration cells' combinations
    (:func:`ranked_p`) is one. That no p counts for more than ``USUAL_P`` is the truncated Cauchy
    combination of Fang et al. 2023, Statistica Sinica 33.
    """
    p = np.stack([ranked_p(score, is_calibration) for score in scores.values()])
    return _combined(p, list(scores), is_calibration, log_depth)


def combine_tails(scores: dict[str, np.ndarray], log_depth: np.ndarray) -> np.ndarray:
    """As :func:`combine_kinds` for cells that are ranked among themselves, by :func:`tail_p`."""
    p = np.stack([tail_p(score) for score in scores.values()])
    return _combined(p, list(scores), np.ones(len(log_depth), dtype=bool), log_depth)


def _combined(
    p: np.ndarray, kinds: list[str], is_normal: np.ndarray, log_depth: np.ndarray
) -> np.ndarray:
    combined = cauchy_combination(np.minimum(p, USUAL_P), kind_weights(kinds))
    score = -np.log10(np.maximum(combined, SMALLEST_P))
    slope = depth_slope(score[is_normal], log_depth[is_normal])
    free = score - slope * log_depth
    return free - np.median(free[is_normal])


def ranked_p(score: np.ndarray, is_calibration: np.ndarray) -> np.ndarray:
    """Conformal p of all cells; calibration cells against the others (cells,)."""
    p = conformal_p(score, score[is_calibration])
    p[is_calibration] = calibration_p(score[is_calibration])
    return p
