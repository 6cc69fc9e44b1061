"""How far a cell's place in latent space is from where the reference's training cells are."""

import numpy as np
from scipy.spatial import cKDTree
from sklearn.mixture import GaussianMixture

COMPONENTS = (1, 2, 4, 6, 8, 12, 16)
CELLS_PER_COMPONENT = 20
RIDGE = 1e-2  # of a latent whose prior variance is 1: no component shrinks onto a few cells
NEIGHBOURS = 10
MIXTURE_CELLS = 20_000  # a density in a few dimensions gains nothing from more


def mixture_surprise(
    train: np.ndarray, validation: np.ndarray, cells: np.ndarray, seed: int
) -> np.ndarray:
    """-log density of ``cells`` (cells, latent) under a Gaussian mixture of the training cells.

    The number of components is the one with the largest log-density of the validation cells.
    """
    rng = np.random.default_rng(seed)
    if len(train) > MIXTURE_CELLS:
        train = train[np.sort(rng.choice(len(train), MIXTURE_CELLS, replace=False))]
    fitting = [k for k in COMPONENTS if k == 1 or k * CELLS_PER_COMPONENT <= len(train)]
    mixtures = [GaussianMixture(k, reg_covar=RIDGE, random_state=seed).fit(train) for k in fitting]
    best = max(mixtures, key=lambda mixture: mixture.score(validation))
    return -best.score_samples(cells)


def neighbour_distance(train: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """log of the mean distance to the nearest training cells (cells,).

    ``cells`` must not contain training cells: those are their own neighbours.
    """
    k = min(NEIGHBOURS, len(train))
    distance, _ = cKDTree(train).query(cells, k=k)
    return np.log(np.reshape(distance, (len(cells), k)).mean(1) + 1e-6)
