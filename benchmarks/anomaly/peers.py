"""What people would pick instead: every peer's score of every cell of a finished run.

A peer is fitted on train and validation cells and scores all cells; larger is odder. It sees what
the pipeline's own model sees: the counts of the selected genes, and the total over all genes. Cells
are log1p of counts at the fitted cells' median total for all but SCVI and the deviance, which take
counts. "adj" is a score standardised against depth by a polynomial (:func:`adjusted`).
"""

import importlib.util
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Principal components: the peers' best mean AUROC among 10, 15, 30 and 50 on split 1 of the public
# sets. A mixture's covariances cannot be learned in 30 dimensions from some 800 cells.
COMPONENTS = 30
FEW_COMPONENTS = 10  # of the mixture and of the reconstruction
NEIGHBOURS = 15
MIXTURE_SIZES = (1, 2, 4, 6, 8, 12, 16)
CLUSTERS = 12
ORACLE = "oracle"
# SCVI trains 400 epochs by default; here so many steps at most, some 40 s on one core.
SCVI_STEPS = 1500
SCVI_BATCH = 128


@dataclass(frozen=True)
class Cells:
    """The cells of a run as the peers see them."""

    ids: np.ndarray  # (cells,)
    counts: sp.csr_matrix  # (cells, selected genes)
    total: np.ndarray  # (cells,) counts over all genes
    split: np.ndarray  # (cells,) train, validation, calibration or query
    is_hidden: np.ndarray  # (cells,) bool; for the oracle and the judge only

    @property
    def fit(self) -> np.ndarray:
        """The cells that a peer may learn from (cells,) bool."""
        return np.isin(self.split, ["train", "validation"])

    def logged(self) -> np.ndarray:
        """log(1 + counts at the fitted cells' median total) (cells, selected genes)."""
        scale = np.median(self.total[self.fit]) / self.total
        return np.log1p(self.counts.multiply(scale[:, None]).toarray())


def read_cells(counts: Path) -> Cells:
    """From the pipeline's preprocess/counts.h5ad."""
    adata = ad.read_h5ad(counts)
    X = sp.csr_matrix(adata.X)
    return Cells(
        ids=adata.obs_names.to_numpy(),
        counts=X[:, np.flatnonzero(adata.var["selected"].to_numpy(bool))],
        total=np.asarray(X.sum(1), dtype=np.float64).ravel(),
        split=adata.obs["split"].astype(str).to_numpy(),
        is_hidden=adata.obs["truth"].to_numpy(bool),
    )


# ---- scores of points in some space: principal components, or SCVI's latent


def neighbour_score(Z: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Mean distance to the nearest fitted cells, a cell itself not counted (cells,)."""
    near = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(Z[fit])
    distance = near.kneighbors(Z)[0]
    return np.where(fit, distance[:, 1:].mean(1), distance[:, :-1].mean(1))


def mixture_score(Z: np.ndarray, train: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """-log density under a Gaussian mixture (cells,).

    The validation cells choose the number of components; then they join the training cells.
    """
    settings = {"reg_covar": 1e-2, "random_state": 0}
    sizes = [k for k in MIXTURE_SIZES if k < train.sum()]
    held_out = [GaussianMixture(k, **settings).fit(Z[train]).score(Z[validation]) for k in sizes]
    best = sizes[int(np.argmax(held_out))]
    return -GaussianMixture(best, **settings).fit(Z[train | validation]).score_samples(Z)


# ---- families of peers: name of each score -> (cells,)


def depth_peers(cells: Cells) -> dict[str, np.ndarray]:
    """|log total - median|, both tails: what depth alone would find."""
    log_total = np.log(cells.total)
    return {"total count": np.abs(log_total - np.median(log_total[cells.fit]))}


def pca_peers(cells: Cells) -> dict[str, np.ndarray]:
    """Squared distance from the principal components, and outlier detectors on them."""
    X, fit = cells.logged(), cells.fit
    pca = PCA(COMPONENTS, random_state=0).fit(X[fit])
    Z = pca.transform(X)
    few, axes = Z[:, :FEW_COMPONENTS], pca.components_[:FEW_COMPONENTS]
    forest = IsolationForest(n_estimators=300, random_state=0).fit(Z[fit])
    factor = LocalOutlierFactor(novelty=True).fit(Z[fit])
    return {
        "PCA error": np.square(X - pca.mean_ - few @ axes).sum(1),
        "PCA + kNN": neighbour_score(Z, fit),
        "PCA + IsolationForest": -forest.score_samples(Z),
        "PCA + LOF": -factor.score_samples(Z),
        "PCA + mixture": mixture_score(few, cells.split == "train", cells.split == "validation"),
    }


def deviance_peers(cells: Cells) -> dict[str, np.ndarray]:
    """Poisson deviance from the nearest cluster's mean composition (k-means on PCA).

    With mean rate m_g a count, mu = total m: 2 sum_g x log(x / mu) - (x - mu), least over clusters.
    """
    X, fit = cells.logged(), cells.fit
    Z = PCA(COMPONENTS, random_state=0).fit(X[fit]).transform(X[fit])
    cluster = KMeans(CLUSTERS, n_init=4, random_state=0).fit_predict(Z)
    counts = cells.counts.astype(np.float64)
    own = counts.copy()
    own.data = own.data * np.log(own.data)
    deviance = []
    for k in np.unique(cluster):
        members = np.flatnonzero(fit)[cluster == k]
        # Half a count a gene, so that a gene the cluster never shows does not weigh infinitely.
        seen = np.asarray(counts[members].sum(0)).ravel() + 0.5
        rate = seen / cells.total[members].sum()
        log_mu = counts @ np.log(rate) + np.asarray(counts.sum(1)).ravel() * np.log(cells.total)
        saturated = np.asarray(own.sum(1)).ravel()
        linear = np.asarray(counts.sum(1)).ravel() - cells.total * rate.sum()
        deviance.append(2 * (saturated - log_mu - linear))
    return {"Poisson deviance": np.min(deviance, axis=0)}


def pyod_peers(cells: Cells) -> dict[str, np.ndarray]:
    """pyod on principal components: ECOD (DOI 10.1109/TKDE.2022.3159580) and LUNAR (AAAI 2022)."""
    import torch
    from pyod.models.ecod import ECOD
    from pyod.models.lunar import LUNAR

    X, fit = cells.logged(), cells.fit
    Z = PCA(COMPONENTS, random_state=0).fit(X[fit]).transform(X)
    torch.manual_seed(0)
    np.random.seed(0)  # LUNAR draws its negatives from the global generator
    return {
        "ECOD": ECOD().fit(Z[fit]).decision_function(Z),
        "LUNAR": LUNAR().fit(Z[fit]).decision_function(Z),
    }


def scvi_peers(cells: Cells) -> dict[str, np.ndarray]:
    """scvi-tools' SCVI on the counts: latent distance and density, -ELBO, -E log p(x|z).

    Its own defaults but for NB counts and the length: its 400 epochs or SCVI_STEPS steps, whichever
    is less, with the warm-up of the KL term as long as the training, as in its default.
    """
    import scvi
    import torch

    torch.set_num_threads(1)
    scvi.settings.seed = 0
    scvi.settings.verbosity = logging.WARNING
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning|scvi|torch")
    adata = ad.AnnData(cells.counts.astype(np.float32))
    fitted = adata[cells.fit].copy()
    scvi.model.SCVI.setup_anndata(fitted)
    model = scvi.model.SCVI(fitted, gene_likelihood="nb")
    epochs = min(400, max(1, SCVI_STEPS * SCVI_BATCH // len(fitted)))
    model.train(
        max_epochs=epochs,
        accelerator="cpu",
        train_size=1.0,
        batch_size=SCVI_BATCH,
        # Its batch norm takes no batch of a single cell.
        datasplitter_kwargs={"drop_last": len(fitted) % SCVI_BATCH == 1},
        plan_kwargs={"n_epochs_kl_warmup": epochs},
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    Z = model.get_latent_representation(adata)
    elbo = model.get_elbo(adata, return_mean=False)
    fits = model.get_reconstruction_error(adata, return_mean=False)["reconstruction_loss"]
    return {
        "SCVI latent kNN": neighbour_score(Z, cells.fit),
        "SCVI latent mixture": mixture_score(
            Z, cells.split == "train", cells.split == "validation"
        ),
        # log p of counts is negative, so the size is the loss, whatever sign a version returns.
        "SCVI -ELBO": np.abs(np.asarray(elbo, dtype=np.float64)),
        "SCVI error": np.abs(np.asarray(fits, dtype=np.float64)),
    }


def oracle(cells: Cells) -> dict[str, np.ndarray]:
    """Supervised, cross-validated: logistic regression on the query's own PCA, knowing the truth.

    An upper line, not a peer. Without enough hidden cells it has no score; NaN outside the query.
    """
    query = cells.split == "query"
    hidden = cells.is_hidden[query]
    if hidden.sum() < 5:
        return {}
    X = cells.logged()[query]
    Z = PCA(min(50, *X.shape), random_state=0).fit_transform(X)
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    score = np.full(len(query), np.nan)
    score[query] = cross_val_predict(
        make_pipeline(StandardScaler(), model), Z, hidden, cv=folds, method="decision_function"
    )
    return {ORACLE: score}


# Each family with the packages that it needs beyond the pipeline's own.
FAMILIES = {
    "depth": (depth_peers, ()),
    "pca": (pca_peers, ()),
    "deviance": (deviance_peers, ()),
    "pyod": (pyod_peers, ("pyod",)),
    "scvi": (scvi_peers, ("scvi",)),
    "oracle": (oracle, ()),
}
AS_IS = {"total count", ORACLE}  # adjusted for depth they would be nothing, or no longer themselves


def missing_packages(family: str) -> list[str]:
    """What a family needs and this environment lacks."""
    return [name for name in FAMILIES[family][1] if importlib.util.find_spec(name) is None]


def adjusted(score: np.ndarray, log_total: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The score standardised against depth: (s - m(d)) / w(d), d = log total (cells,).

    m is the quadratic least-squares fit of the score of the ``normal`` cells on d, w the same of
    their |s - m|, straight instead of quadratic and no less than a fifth of its mean.
    """
    d = log_total - log_total[normal].mean()
    centre = np.polynomial.Polynomial.fit(d[normal], score[normal], 2)(d)
    rest = np.abs(score - centre)
    width = np.polynomial.Polynomial.fit(d[normal], rest[normal], 1)(d)
    return (score - centre) / np.maximum(width, 0.2 * rest[normal].mean())


def family_scores(family: str, cells: Cells) -> dict[str, np.ndarray]:
    """Every score of a family, raw and adjusted on the calibration cells, each (cells,)."""
    scores = FAMILIES[family][0](cells)
    calibration = cells.split == "calibration"
    log_total = np.log(cells.total)
    return scores | {
        f"{name}, adj": adjusted(score, log_total, calibration)
        for name, score in scores.items()
        if name not in AS_IS
    }
