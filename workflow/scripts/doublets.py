"""Doublets made of reference cells, and what tells a cell from them or shows it to be one."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial import cKDTree

from held_cells import Cells
from omics_vae.counts import Counts
from omics_vae.model import VAE

NEIGHBOURS = 20
# Share of the reference's overall profile in that of a few neighbours, whose unseen genes are not
# impossible.
SMOOTHING = 0.1
CHUNK = 512  # cells whose neighbours' profiles are dense at once


@dataclass(frozen=True)
class Doublets:
    """Simulated doublets, and the positions of their parents among the cells they were made of."""

    cells: Cells  # obs are those of the first parent
    first: np.ndarray  # (doublets,)
    second: np.ndarray  # (doublets,)
    matched: np.ndarray  # (doublets,) bool: thinned to the depth of a single cell

    def take(self, doublets: np.ndarray) -> "Doublets":
        """Some of them: positions or a boolean mask."""
        rows = (getattr(self, name)[doublets] for name in ("first", "second", "matched"))
        return Doublets(self.cells.take(doublets), *rows)


def simulate_doublets(
    cells: Cells,
    n: int,
    rng: np.random.Generator,
    model: VAE,
    device,
    matched: float = 0.5,
    within: np.ndarray | None = None,
) -> Doublets:
    """Sums of two cells of the same sample (and batch), drawn at random.

    A share ``matched`` is thinned to the total count of a cell drawn at random: library preparation
    may even out depth, and depth alone must not tell a doublet. Homotypic pairs are among them, as
    they are among real ones. ``within`` (cells,): both parents are of the same value too. At most
    ``n``: those without any count in the model's genes are left out.
    """
    first = rng.integers(0, len(cells), n)
    second = partners(_droplets(cells, within), first, rng)
    counts = (cells.counts[first] + cells.counts[second]).tocsr()
    is_matched = rng.random(n) < matched
    target = total(cells.counts)[rng.integers(0, len(cells), n)]
    share = np.where(is_matched, np.minimum(target / total(counts), 1.0), 1.0)
    counts = thin(counts, share, rng)
    some = total(counts[:, cells.in_model]) > 0
    first, second, is_matched = first[some], second[some], is_matched[some]
    made = cells.take(first).with_counts(counts[some], model, device)
    return Doublets(made, first, second, is_matched)


def _droplets(cells: Cells, within: np.ndarray | None) -> np.ndarray:
    """Which cells could have shared a droplet: a code each; the lone ones are put together."""
    table = pd.DataFrame({"within": np.zeros(len(cells)) if within is None else within})
    names = [name for name in ("sample", "batch") if name in cells.obs]
    for name in names:
        table[name] = cells.obs[name].astype(str).to_numpy()
    is_alone = ~table.duplicated(keep=False)
    table.loc[is_alone, names] = ""
    return table.groupby(list(table), sort=True).ngroup().to_numpy()


def partners(group: np.ndarray, first: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each of ``first`` another cell of its group, each as likely (positions).

    ``group`` (cells,): codes from 0. A cell alone in its group is its own partner.
    """
    order = np.argsort(group, kind="stable")
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group))
    sizes = np.bincount(group)
    size, begin = sizes[group[first]], (np.cumsum(sizes) - sizes)[group[first]]
    step = 1 + rng.integers(0, np.maximum(size - 1, 1))
    return order[begin + (rank[first] - begin + step) % size]


def thin(counts: sp.csr_matrix, share: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Binomial thinning: of each count of cell i a share ``share[i]`` is kept (cells, genes)."""
    kept = counts.copy()
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    kept.data = rng.binomial(counts.data, share[rows]).astype(counts.dtype)
    kept.eliminate_zeros()
    return kept


def total(counts: Counts | sp.csr_matrix) -> np.ndarray:
    """Total count of each cell (cells,) float64."""
    return np.asarray(counts.sum(1), dtype=np.float64).ravel()


class Neighbourhood:
    """Cells of one kind in latent space: who is near, and what the near ones express together."""

    def __init__(self, cells: Cells, scale: np.ndarray):
        """``scale`` (latent,): distances are counted in it."""
        self.scale, self.k = scale, min(NEIGHBOURS, len(cells))
        self._tree = cKDTree(cells.latent / scale)
        self._shares = sp.diags_array(1.0 / total(cells.counts)) @ cells.counts[:]

    def nearest(self, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances and positions of the nearest, near to far, each (cells, neighbours)."""
        distance, position = self._tree.query(latent / self.scale, k=self.k)
        shape = (len(latent), self.k)
        return np.reshape(distance, shape), np.reshape(position, shape)

    def profile(self, position: np.ndarray, overall: np.ndarray) -> np.ndarray:
        """Share of each gene in the counts of these neighbours, smoothed (cells, genes)."""
        rows = np.repeat(np.arange(len(position)), position.shape[1])
        weights = np.full(position.size, 1.0 / position.shape[1])
        shape = (len(position), self._shares.shape[0])
        mean = sp.csr_matrix((weights, (rows, position.ravel())), shape) @ self._shares
        return (1.0 - SMOOTHING) * mean.toarray() + SMOOTHING * overall


@dataclass(frozen=True)
class Comparison:
    """What tells singlets from doublets, of some cells."""

    features: np.ndarray  # (cells, features) for the classifier
    unexplained: np.ndarray  # (cells,) share of the counts that near doublets do not have
    near_doublets: np.ndarray  # (cells, neighbours) positions, near to far

    @classmethod
    def join(cls, parts: list["Comparison"]) -> "Comparison":
        """Of several groups of cells, one after the other."""
        columns = ([getattr(part, name) for part in parts] for name in cls.__dataclass_fields__)
        return cls(*map(np.concatenate, columns))

    def take(self, cells: np.ndarray) -> "Comparison":
        """That of some cells: positions or a boolean mask."""
        return Comparison(*(getattr(self, name)[cells] for name in self.__dataclass_fields__))


def compare(cells: Cells, singlets: Cells, doublets: Cells) -> Comparison:
    """Hold ``cells`` against single cells and simulated doublets that are none of them.

    Features: latent position; share of doublets among the neighbours of both kinds together; log
    mean distance to each kind; and the log-likelihood ratio, over all genes,

    .. math:: \\ell_i = \\sum_g x_{ig} \\log \\frac{p^D_{ig}}{p^S_{ig}}

    of the profiles of the near doublets and of the near singlets, as it is, by count, and by its
    root. ``unexplained`` is the total variation distance sum_g max(0, x_ig / n_i - p^D_ig): large
    for a type that no pair of reference cells makes.
    """
    scale = np.maximum(singlets.latent.std(0), 1e-6)
    of_singlets, of_doublets = Neighbourhood(singlets, scale), Neighbourhood(doublets, scale)
    overall = singlets.counts.sum(0) + 0.5
    overall /= overall.sum()
    to_singlets, near_singlets = of_singlets.nearest(cells.latent)
    to_doublets, near_doublets = of_doublets.nearest(cells.latent)
    n = total(cells.counts)
    ratio, unexplained = np.zeros(len(cells)), np.zeros(len(cells))
    for start in range(0, len(cells), CHUNK):
        chunk = slice(start, start + CHUNK)
        x = cells.counts[chunk].tocoo()
        at = (x.row, x.col)
        p_doublet = of_doublets.profile(near_doublets[chunk], overall)[at]
        p_singlet = of_singlets.profile(near_singlets[chunk], overall)[at]
        row, size = x.row, len(n[chunk])
        ratio[chunk] = np.bincount(row, x.data * np.log(p_doublet / p_singlet), size)
        above = np.maximum(x.data / n[chunk][row] - p_doublet, 0.0)
        unexplained[chunk] = np.bincount(row, above, size)
    by_count = np.column_stack([ratio, ratio / n, ratio / np.sqrt(n)])
    place = [np.log(d.mean(1) + 1e-6) for d in (to_singlets, to_doublets)]
    share = doublet_share(to_singlets, to_doublets)
    features = np.column_stack([cells.latent, share, *place, by_count])
    return Comparison(features, unexplained, near_doublets)


def doublet_share(to_singlets: np.ndarray, to_doublets: np.ndarray) -> np.ndarray:
    """Share of doublets among the nearest cells of both kinds together (cells,).

    From the sorted distances to each kind (cells, neighbours): the nearest of all are among them.
    """
    k = min(to_singlets.shape[1], to_doublets.shape[1])
    both = np.concatenate([to_singlets, to_doublets], axis=1)
    nearest = np.argsort(both, axis=1, kind="stable")[:, :k]
    return (nearest >= to_singlets.shape[1]).mean(1)
