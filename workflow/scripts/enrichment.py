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
    sides, n_train = (train, held_out), len(train)
    size = np.concatenate([cells.size for cells in sides])
    median, rng = float(np.median(size)), np.random.default_rng(seed)
    chosen = [
        np.sort(rng.permutation(n)[:CELLS]) if n > CELLS else np.arange(n)
        for n in (n_train, len(held_out))
    ]
    read = [cells.counts[cells_of] for cells, cells_of in zip(sides, chosen, strict=True)]
    fitted = np.concatenate([chosen[0], n_train + chosen[1]])
    profiles = log_profiles(sp.vstack(read, format="csr"), size[fitted], median)
    components = TruncatedSVD(min(COMPONENTS, profiles.shape[1] - 1), random_state=seed)
    components.fit(profiles)
    place = np.concatenate(
        [
            components.transform(log_profiles(x, cells.size[rows], median))
            for cells in sides
            for rows, x in cells.counts.blocks()
        ]
    )
    place = _without_covariates(place, train, held_out)
    place = StandardScaler().fit(place[fitted]).transform(place)
    radial = Nystroem(gamma=WIDTH, n_components=min(LANDMARKS, len(fitted)), random_state=seed).fit(
        place[fitted]
    )

    def features(of: np.ndarray) -> np.ndarray:
        return np.hstack([RADIAL_WEIGHT * radial.transform(of), of])

    classifier = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=1000)
    classifier.fit(features(place[fitted]), fitted >= n_train)
    return np.concatenate(
        [
            classifier.decision_function(features(place[start : start + CELLS]))
            for start in range(n_train, len(place), CELLS)
        ]
    )


def _without_covariates(place: np.ndarray, train: Cells, held_out: Cells) -> np.ndarray:
    given = np.vstack([cells.design.covariates(cells.obs) for cells in (train, held_out)])
    if given.shape[1] == 0:
        return place
    columns = np.column_stack([np.ones(len(given)), given]).astype(np.float64)
    effect = np.linalg.lstsq(columns[: len(train)], place[: len(train)], rcond=None)[0]
    return place - columns @ effect
