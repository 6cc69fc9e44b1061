"""Groups of reference cells with names: the user's labels where there are any, else clusters.

Labels give names to what is found; no score, p-value or flag depends on them. Those of query cells
are never read.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from sklearn.mixture import GaussianMixture

# Names of a label column, the most telling first, written without case and punctuation.
LABEL_COLUMNS = (
    *("celltype", "celltypes", "cellontologyclass", "annotation", "annotations"),
    *("label", "labels", "cluster", "clusters", "leiden", "louvain", "seuratclusters"),
)
NO_LABEL = ("", "nan", "none", "na", "unknown", "unassigned", "unlabelled", "unlabeled")
MOST_LABELS = 200  # more are names of cells, not of groups
SMALLEST_GROUP = 5  # cells; a profile of fewer is noise
CLUSTERS = range(1, 17)
CELLS_PER_CLUSTER = 30
RIDGE = 1e-2  # as in latent_place: no cluster shrinks onto a few cells
CLUSTERED_CELLS = 20_000
NEIGHBOURS = 15


@dataclass(frozen=True)
class ReferenceGroups:
    """Which group each reference cell is of."""

    names: list[str]
    code: np.ndarray  # (reference cells,) position in ``names``; -1 in no group
    source: str  # the column that named them, or "latent clusters"
    latent: np.ndarray  # (reference cells, latent)

    def nearest(self, latent: np.ndarray) -> np.ndarray:
        """Position in ``names`` of the group that most of a cell's nearest reference cells are of.

        ``latent`` (cells, latent). Of groups with equally many the one whose cells lie nearer.
        """
        grouped = np.flatnonzero(self.code >= 0)
        k = min(NEIGHBOURS, len(grouped))
        distance, place = cKDTree(self.latent[grouped]).query(latent, k=k)
        shape = (len(latent), k)
        votes, order = np.zeros((len(latent), len(self.names))), np.arange(len(latent))
        codes = self.code[grouped][np.reshape(place, shape)]
        # Far less than one vote altogether, so that nearness only decides between equals.
        weight = 1.0 + 1e-6 / (1.0 + np.reshape(distance, shape))
        for neighbour in range(k):
            votes[order, codes[:, neighbour]] += weight[:, neighbour]
        return votes.argmax(1)


def label_column(obs: pd.DataFrame) -> str | None:
    """The column of ``obs`` (of reference cells) that names their types; None where there is none.

    It must name most cells and tell at least two groups apart.
    """
    plain = {
        "".join(filter(str.isalnum, str(name).lower())): name for name in reversed(obs.columns)
    }
    for wanted in LABEL_COLUMNS:
        if wanted in plain:
            sizes = _labels(obs[plain[wanted]]).value_counts()
            sizes = sizes[sizes >= SMALLEST_GROUP]
            if 2 <= len(sizes) <= MOST_LABELS and sizes.sum() > len(obs) / 2:
                return plain[wanted]
    return None


def _labels(column: pd.Series) -> pd.Series:
    """The labels as text; missing where a cell has none."""
    text = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    return text.where(~text.str.lower().isin(NO_LABEL))


def reference_groups(latent: np.ndarray, obs: pd.DataFrame, seed: int) -> ReferenceGroups:
    """The groups of the reference cells with posterior means ``latent`` and metadata ``obs``.

    By the column of :func:`label_column`; without one, clusters of the latent positions (a Gaussian
    mixture whose number of components has the smallest BIC), named R1, R2, ... by size.
    """
    column = label_column(obs)
    if column is None:
        cluster = _clusters(latent, seed)
        found = pd.Series(cluster).value_counts()
        found = found.sort_index().sort_values(ascending=False, kind="stable")
        labels = pd.Series(cluster).map({c: f"R{i}" for i, c in enumerate(found.index, start=1)})
        names = [f"R{i}" for i in range(1, len(found) + 1)]
    else:
        labels = _labels(obs[column])
        sizes = labels.value_counts()
        names = sorted(sizes.index[sizes >= SMALLEST_GROUP])
    code = pd.Index(names).get_indexer(labels)
    return ReferenceGroups(names, code, column or "latent clusters", latent)


def _clusters(latent: np.ndarray, seed: int) -> np.ndarray:
    """A cluster for each cell (cells,)."""
    rng = np.random.default_rng(seed)
    fitted = latent
    if len(latent) > CLUSTERED_CELLS:
        fitted = latent[np.sort(rng.choice(len(latent), CLUSTERED_CELLS, replace=False))]
    mixtures = [
        GaussianMixture(k, reg_covar=RIDGE, random_state=seed).fit(fitted)
        for k in CLUSTERS
        if k == 1 or k * CELLS_PER_CLUSTER <= len(fitted)
    ]
    return min(mixtures, key=lambda mixture: mixture.bic(fitted)).predict(latent)
