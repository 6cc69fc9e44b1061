"""How far a cell's place in latent space is from where the reference's training cells are."""

import numpy as np
from scipy.spatial import cKDTree
from sklearn.mixture import GaussianMixture

COMPONENTS = (1, 2, 4, 6, 8, 12, 16)
CELLS_PER_COMPONENT = 20
RIDGE = 1e-2  # of a latent whose prior variance is 1: no component shrinks onto a few cells
NEIGHBOURS = 10
MIXTURE_CELLS = 20_000  # a density in a few dimensions gains nothing from more
# Training cells among which neighbours are sought: the time of a search grows with their number,
# and of ten times as many the nearest ten are not much nearer.
NEIGHBOUR_CELLS = 50_000


def fit_mixture(train: np.ndarray, validation: np.ndarray, seed: int) -> GaussianMixture:
    """A Gaussian mixture of the training cells (cells, latent).

    The number of components is the one with the largest log-density of the validation cells.
    """
    train = _some(train, MIXTURE_CELLS, seed)
    fitting = [k for k in COMPONENTS if k == 1 or k * CELLS_PER_COMPONENT <= len(train)]
    mixtures = [GaussianMixture(k, reg_covar=RIDGE, random_state=seed).fit(train) for k in fitting]
    return max(mixtures, key=lambda mixture: mixture.score(validation))


def neighbour_distance(train: np.ndarray, cells: np.ndarray, seed: int = 0) -> np.ndarray:
    """log of the mean distance to the nearest training cells (cells,).

    ``cells`` must not contain training cells: those are their own neighbours.
    """
    train = _some(train, NEIGHBOUR_CELLS, seed)
    k = min(NEIGHBOURS, len(train))
    distance, _ = cKDTree(train).query(cells, k=k)
    return np.log(np.reshape(distance, (len(cells), k)).mean(1) + 1e-6)


def _some(cells: np.ndarray, at_most: int, seed: int) -> np.ndarray:
    """At most so many of the cells (cells, latent), in their order."""
    if len(cells) <= at_most:
        return cells
    rng = np.random.default_rng(seed)
    return cells[np.sort(rng.choice(len(cells), at_most, replace=False))]
