"""Where held-out cells outnumber the training cells: groups of cells that the reference lacks.

A cell may be odd for what it is, or for the company it keeps: a cell type that the reference has
not seen is a place that query cells fill and training cells do not. A classifier of held-out
against training cells finds such places. It never learns which held-out cell is of the calibration
set and which of the query, so ranking one among the other stays valid.
Source: Marandon et al. 2024 (AdaDetect), doi:10.1214/23-AOS2338.
"""

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from held_cells import Cells

# Measured on the public sets of benchmarks/anomaly: 10 to 30 components, widths a factor of two
# away and penalties a factor of three away do alike; fewer components miss near relatives.
COMPONENTS = 20
WIDTH = 0.5 / COMPONENTS  # of the radial functions exp(-WIDTH distance^2), components at unit SD
LANDMARKS = 300  # centres of the radial functions
RADIAL_WEIGHT = 5.0  # of the radial against the linear features, which extrapolate
PENALTY = 0.01  # sklearn's C: small, so that chance differences are smoothed away
CELLS = 20_000  # that the components and the classifier are fitted on, at most, of each side


def log_profiles(counts: sp.csr_matrix, size: np.ndarray, common: float) -> sp.csr_matrix:
    """log(1 + counts at the library size ``common``) (cells, genes)."""
    profiles = sp.csr_matrix(sp.diags(common / size) @ counts, dtype=np.float64)
    profiles.data = np.log1p(profiles.data)
    return profiles


def enrichment(train: Cells, held_out: Cells, seed: int) -> np.ndarray:
    """Log-odds that a cell at this place is a held-out one (held-out cells,).

    Logistic regression on principal components of the log profiles over all genes, the query's own
    included, and on radial functions of them. What covariates of the model explain in the training
    cells is taken off first, so that a known batch is no group. Both sides weigh the same.
    """
    sides, rng = (train, held_out), np.random.default_rng(seed)
    median = float(np.median(np.concatenate([cells.size for cells in sides])))
    fitted = [
        cells.take(np.sort(rng.permutation(len(cells))[:CELLS])) if len(cells) > CELLS else cells
        for cells in sides
    ]
    is_held_out = np.repeat([False, True], [len(cells) for cells in fitted])
    profiles = sp.vstack([log_profiles(cells.counts[:], cells.size, median) for cells in fitted])
    n_components = min(COMPONENTS, profiles.shape[1] - 1)
    components = TruncatedSVD(n_components, random_state=seed).fit(profiles)
    place, given = components.transform(profiles), np.vstack([_given(cells) for cells in fitted])
    effect = np.linalg.lstsq(given[~is_held_out], place[~is_held_out], rcond=None)[0]
    scaler = StandardScaler().fit(place - given @ effect)
    place = scaler.transform(place - given @ effect)
    n_landmarks = min(LANDMARKS, len(place))
    radial = Nystroem(gamma=WIDTH, n_components=n_landmarks, random_state=seed).fit(place)

    def features(of: np.ndarray) -> np.ndarray:
        return np.hstack([RADIAL_WEIGHT * radial.transform(of), of])

    classifier = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=1000)
    classifier.fit(features(place), is_held_out)
    given, odds = _given(held_out), np.empty(len(held_out))
    for rows, x in held_out.counts.blocks():
        place = components.transform(log_profiles(x, held_out.size[rows], median))
        odds[rows] = classifier.decision_function(
            features(scaler.transform(place - given[rows] @ effect))
        )
    return odds


def _given(cells: Cells) -> np.ndarray:
    """What the model is told of the cells, with an intercept (cells, columns).

    A column of zeros where it is told nothing: nothing is then taken off.
    """
    covariates = cells.design.covariates(cells.obs).astype(np.float64)
    intercept = float(covariates.shape[1] > 0)
    return np.column_stack([np.full(len(cells), intercept), covariates])
