"""Flagged cells whose residuals point the same way, and the genes that say which way."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.stats import false_discovery_control

from omics_vae.likelihoods import NegativeBinomial
from reference_profile import RESIDUAL_LIMIT, Comparison

DEFINING_GENES = 4000  # with the largest residuals; a decomposition of all is slow
SMALLEST_PATTERN = 3  # cells: two alike may be chance
SIGN_FLIPS = 3  # draws of the noise; the largest counts
MOST_AXES = 50
# A cell says where its pattern points only if it leaves the normal range further than 99 % of
# held-out normal cells, measured along the same axes.
NORMAL_QUANTILE = 0.99
# Cells are one pattern while the mean cosine between their residuals is 0.5 or more (60 degrees).
LEAST_COSINE = 0.5
MARKER_Q = 0.05
MARKER_FOLD = 1.0  # log2; at least twice or half
LEAST_SHARE = 0.2  # of the pattern's cells that deviate in that direction
LABEL_GENES = 4
MARKER_COLUMNS = [
    *("pattern", "gene", "direction", "mean_observed", "mean_expected", "mean_reference"),
    *("log2_fold_change", "mean_residual", "share", "p_value", "q_value"),
]


@dataclass(frozen=True)
class SignalAxes:
    """The directions in which flagged cells leave what is expected, together."""

    genes: np.ndarray  # positions (used,)
    axes: np.ndarray  # (used, axes), orthonormal

    def place(self, residual: np.ndarray) -> np.ndarray:
        """Residuals (cells, genes) along the axes (cells, axes)."""
        return residual[:, self.genes] @ self.axes


def signal_axes(residual: np.ndarray, seed: int) -> SignalAxes:
    """Axes of the residuals (cells, genes) of flagged cells that stand out of noise.

    Principal axes about 0 with a singular value above the largest one after each residual's sign
    was drawn anew, which keeps its size and takes away what cells have in common. At least one.
    Source: Hong, Sheng & Dobriban 2020, arXiv:2012.02985.
    """
    seen = (np.abs(residual) > 0.5).sum(0) >= min(SMALLEST_PATTERN, len(residual))
    energy = np.where(seen, np.square(residual).sum(0), -1.0)
    genes = np.sort(np.argsort(-energy, kind="stable")[: min(DEFINING_GENES, max(1, seen.sum()))])
    used = residual[:, genes]
    rng = np.random.default_rng(seed)
    noise = max(
        np.linalg.svd(used * rng.choice([-1.0, 1.0], used.shape), compute_uv=False)[0]
        for _ in range(SIGN_FLIPS)
    )
    _, values, axes = np.linalg.svd(used, full_matrices=False)
    n_axes = int(np.clip((values > noise).sum(), 1, MOST_AXES))
    return SignalAxes(genes, axes[:n_axes].T)


def normal_limit(place: np.ndarray) -> float:
    """How far from 0 normal cells reach; ``place``: held-out ones on the signal axes."""
    return float(np.quantile(np.linalg.norm(place, axis=1), NORMAL_QUANTILE))


def group_by_direction(place: np.ndarray, limit: float) -> np.ndarray:
    """The pattern of each flagged cell, 0, 1, ... by falling size; -1 in none (cells,).

    ``place``: the cells on the signal axes; those within ``limit`` of 0 are in none. Average
    linkage of cosines, so a shallow cell, which lies nearer to 0, joins the deep ones of its kind.
    """
    strength = np.linalg.norm(place, axis=1)
    strong = np.flatnonzero(strength > limit)
    pattern = np.full(len(place), -1)
    if len(strong) >= SMALLEST_PATTERN:
        tree = linkage(place[strong], "average", metric="cosine")
        pattern[strong] = fcluster(tree, 1.0 - LEAST_COSINE, "distance")
    return by_size(pattern)


def by_size(pattern: np.ndarray) -> np.ndarray:
    """The groups (>= 0) renumbered, the largest 0; those below the smallest size become -1."""
    names, first, sizes = np.unique(pattern, return_index=True, return_counts=True)
    order = sorted(range(len(names)), key=lambda i: (-sizes[i], first[i]))
    large = [names[i] for i in order if names[i] >= 0 and sizes[i] >= SMALLEST_PATTERN]
    return pd.Index(large).get_indexer(pattern)


def assign(
    place: np.ndarray, defining: np.ndarray, pattern: np.ndarray, limit: float
) -> np.ndarray:
    """Patterns of further cells: that of the most similar mean direction, -1 in none (cells,).

    ``defining``: the places of the cells that made ``pattern``.
    """
    n_patterns = int(pattern.max(initial=-1)) + 1
    if not n_patterns or not len(place):
        return np.full(len(place), -1)
    unit = defining / np.maximum(np.linalg.norm(defining, axis=1, keepdims=True), 1e-12)
    centres = np.stack([unit[pattern == k].mean(0) for k in range(n_patterns)])
    strength = np.linalg.norm(place, axis=1)
    # The mean over the pattern of the cosine with each of its cells, as in the average linkage.
    cosine = place @ centres.T / np.maximum(strength, 1e-12)[:, None]
    fits = (cosine.max(1) >= LEAST_COSINE) & (strength > limit)
    return np.where(fits, cosine.argmax(1), -1)


@dataclass
class GeneSums:
    """Sums over the cells of one pattern, gene by gene; all (genes,)."""

    n_cells: int
    observed: np.ndarray
    typical: np.ndarray  # the same, no count more than 10 SD above the reference's
    expected: np.ndarray
    variance: np.ndarray  # of the counts about the reference's
    residual: np.ndarray
    above: np.ndarray  # cells with more than the reference's
    by_group: dict[int, np.ndarray]  # the reference's counts, by nearest reference group

    @classmethod
    def empty(cls, n_genes: int) -> "GeneSums":
        return cls(0, *(np.zeros(n_genes) for _ in range(6)), {})

    @property
    def reference(self) -> np.ndarray:
        return np.sum(list(self.by_group.values()), axis=0)

    def add(self, chunk: Comparison, rows: np.ndarray, nearest: np.ndarray, variance: Callable):
        """The cells ``rows`` (a mask) of a chunk; ``nearest``: groups of the chunk's cells."""
        reference, counts = chunk.reference[rows], chunk.counts[rows]
        spread = variance(reference)
        self.n_cells += int(rows.sum())
        self.observed += counts.sum(0)
        self.typical += np.minimum(counts, reference + RESIDUAL_LIMIT * np.sqrt(spread)).sum(0)
        self.expected += chunk.expected[rows].sum(0)
        self.variance += spread.sum(0)
        self.residual += chunk.residual[rows].sum(0)
        self.above += (counts > reference).sum(0)
        for group in np.unique(nearest[rows]):
            of_group = reference[nearest[rows] == group].sum(0)
            self.by_group[group] = self.by_group.get(group, 0.0) + of_group


def sum_genes(
    chunks: Iterable[Comparison], pattern: np.ndarray, nearest: np.ndarray, variance: Callable
) -> list[GeneSums]:
    """The sums of each pattern from the chunks of ``ReferenceProfile.compare``."""
    sums: list[GeneSums] = []
    for chunk in chunks:
        while len(sums) <= pattern.max():
            sums.append(GeneSums.empty(chunk.counts.shape[1]))
        of_chunk = pattern[chunk.cells]
        for k in np.unique(of_chunk[of_chunk >= 0]):
            sums[k].add(chunk, of_chunk == k, nearest[chunk.cells], variance)
    return sums


def marker_genes(sums: GeneSums, seen: np.ndarray, genes: pd.Index) -> pd.DataFrame:
    """Genes of a pattern against normal cells of its nearest reference groups, the surest first.

    The total count of n cells with means mu_i and variances v_i is taken as one negative binomial
    of mean M = sum mu_i and variance sum v_i + sum_k M_k^2 / (R_k + 1): the second term because the
    rate of group k was learned from R_k counts (``seen``, groups x genes). Single cells may hold
    dozens of a gene that others lack, so no count goes further than 10 SD. p is two-sided, q
    Benjamini-Hochberg over all genes.
    The cells were chosen by their residuals, so p ranks genes and does not prove the pattern.
    A marker has q <= 0.05, at least twice or half the expected count, and a fifth of the cells.
    """
    reference, variance = sums.reference, sums.variance.copy()
    for k, expected in sums.by_group.items():
        variance += expected**2 / (seen[k] + 1.0)
    log_theta = np.log(reference**2 / np.maximum(variance - reference, 1e-12))
    total = NegativeBinomial(
        torch.from_numpy(np.log(reference)), torch.from_numpy(np.clip(log_theta, -10, 20))
    )
    p = np.exp(-total.surprise(sums.typical))
    up = sums.observed > reference
    n = max(sums.n_cells, 1)
    table = pd.DataFrame(
        {
            "gene": genes.to_numpy(),
            "direction": np.where(up, "up", "down"),
            "mean_observed": sums.observed / n,
            "mean_expected": sums.expected / n,
            "mean_reference": reference / n,
            "log2_fold_change": np.log2((sums.observed + 0.5) / (reference + 0.5)),
            "mean_residual": sums.residual / n,
            "share": np.where(up, sums.above, n - sums.above) / n,
            "p_value": p,
            "q_value": false_discovery_control(p, method="bh"),
        }
    )
    sure = (table["q_value"] <= MARKER_Q) & (table["log2_fold_change"].abs() >= MARKER_FOLD)
    agrees = np.sign(table["mean_residual"]) == np.where(up, 1.0, -1.0)
    table = table[sure & agrees & (table["share"] >= LEAST_SHARE)]
    order = table["mean_residual"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def signed(genes: Iterable, signs: Iterable) -> str:
    """``CD79A+, LYZ-``."""
    return ", ".join(
        f"{gene}{'+' if sign > 0 else '-'}" for gene, sign in zip(genes, signs, strict=True)
    )


def label(markers: pd.DataFrame) -> str:
    """``CD79A+ MS4A1+ CD3D-``: the first markers, one of them down where there is any."""
    up, down = (markers[markers["direction"] == side] for side in ("up", "down"))
    n_down = min(len(down), max(1, LABEL_GENES - len(up)))
    chosen = pd.concat([up.head(LABEL_GENES - n_down), down.head(n_down)])
    return " ".join(
        f"{gene}{'+' if side == 'up' else '-'}"
        for gene, side in zip(chosen["gene"], chosen["direction"], strict=True)
    )
