"""A calibrated classifier of doublets, learned from single cells and simulated doublets."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from doublets import Comparison, Doublets, compare, simulate_doublets
from held_cells import Cells
from omics_vae.anomaly import DepthStandard, conformal_p
from omics_vae.model import VAE

FOLDS = 5
DOUBLETS_PER_CELL = 2
# A cell that is less alike to doublets than all but this share of simulated ones is believed to be
# one in proportion to its p-value.
UNLIKELY = 0.1


def prior_weights(is_doublet: np.ndarray, rate: float) -> np.ndarray:
    """Weights (cells,), 1 in the mean, that make doublets a share ``rate`` of all."""
    share = is_doublet.mean()
    return np.where(is_doublet, rate / share, (1.0 - rate) / (1.0 - share))


def fit_classifier(features: np.ndarray, is_doublet: np.ndarray) -> Pipeline:
    """Logistic regression on the features and their products, as if half of all were doublets.

    So what is learned does not hang on their rate, which only shifts the odds.
    """
    return make_pipeline(
        StandardScaler(),
        PolynomialFeatures(2, include_bias=False),
        StandardScaler(),
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000),
    ).fit(features, is_doublet)


@dataclass(frozen=True)
class Calibration:
    """Probability = expit(intercept + slope * score) (Platt scaling)."""

    intercept: float
    slope: float

    @classmethod
    def fit(cls, score: np.ndarray, is_doublet: np.ndarray, rate: float) -> "Calibration":
        """From cells that made no score. A score that misleads them is not believed at all."""
        weights = prior_weights(is_doublet, rate)
        fitted = LogisticRegression(C=1.0).fit(score[:, None], is_doublet, sample_weight=weights)
        if fitted.coef_[0, 0] <= 0.0:
            return cls(float(logit(rate)), 0.0)
        return cls(float(fitted.intercept_[0]), float(fitted.coef_[0, 0]))

    def apply(self, score: np.ndarray) -> np.ndarray:
        """Probabilities (cells,)."""
        return expit(self.intercept + self.slope * score)


@dataclass(frozen=True)
class Likeness:
    """How alike to doublets a cell is, beside simulated ones of its depth.

    By the log of the counts that near doublets lack, which falls about linearly in log depth.
    """

    standard: DepthStandard
    simulated: np.ndarray  # (doublets,) in SDs at their depth

    @classmethod
    def fit(cls, unexplained: np.ndarray, log_depth: np.ndarray) -> "Likeness":
        """From simulated doublets, held against others that share no parent with them."""
        standard = DepthStandard.fit(np.log(unexplained), log_depth)
        return cls(standard, standard.apply(np.log(unexplained), log_depth))

    def p_value(self, unexplained: np.ndarray, log_depth: np.ndarray) -> np.ndarray:
        """Share of simulated doublets that are as little explained by other doublets (cells,)."""
        return conformal_p(self.standard.apply(np.log(unexplained), log_depth), self.simulated)


def guarded(log_odds: np.ndarray, rate: float, p_doublet: np.ndarray) -> np.ndarray:
    """Log-odds at this rate of doublets, lowered where a cell is not alike to them (cells,).

    ``log_odds`` as if half of all were doublets. The classifier knows single cells of the reference
    and doublets of them, nothing else: a novel type is neither, and may lie where doublets do.
    """
    belief = expit(log_odds + logit(rate)) * np.minimum(p_doublet / UNLIKELY, 1.0)
    return logit(np.clip(belief, 1e-12, 1.0 - 1e-12))


@dataclass(frozen=True)
class DoubletModel:
    """Single cells and simulated doublets, and what was learned from them."""

    rate: float
    singlets: Cells
    doublets: Doublets
    classifier: Pipeline
    likeness: Likeness
    calibration: Calibration

    def score(self, cells: Cells) -> tuple[pd.DataFrame, np.ndarray]:
        """The verdict on cells outside the reference, and their nearest doublets, near to far.

        Columns: doublet_score (log-odds before the calibration), doublet_probability, and
        doublet_fit_p, the p-value of "no less alike to doublets than simulated ones are".
        """
        found = compare(cells, self.singlets, self.doublets.cells)
        p_doublet = self.likeness.p_value(found.unexplained, cells.log_depth)
        log_odds = self.classifier.decision_function(found.features)
        score = guarded(log_odds, self.rate, p_doublet)
        columns = {
            "doublet_score": score,
            "doublet_probability": self.calibration.apply(score),
            "doublet_fit_p": p_doublet,
        }
        return pd.DataFrame(columns), found.near_doublets


def as_unseen(score: np.ndarray, is_unseen: np.ndarray) -> np.ndarray:
    """Scores of single cells as if the model had not been trained on them (cells,).

    The others are moved and stretched to the mean and the SD of the unseen ones, which are too few
    to show the tail by themselves.
    """
    unseen, seen = score[is_unseen], score[~is_unseen]
    result = score.copy()
    stretch = unseen.std() / max(seen.std(), 1e-12)
    result[~is_unseen] = (seen - seen.mean()) * stretch + unseen.mean()
    return result


def compare_by_fold(
    reference: Cells, doublets: Doublets, fold: np.ndarray
) -> tuple[Comparison, np.ndarray]:
    """Reference cells, then doublets, each held against the other folds; and the fold of each.

    Both parents of a doublet must be of one ``fold`` (reference cells,): what it is held against
    then shares no parent with it.
    """
    fold_of_doublet = fold[doublets.first]
    parts, where = [], []
    for k in range(FOLDS):
        singlets = reference.take(fold != k)
        others = doublets.cells.take(fold_of_doublet != k)
        for cells, folds, offset in (
            (reference, fold, 0),
            (doublets.cells, fold_of_doublet, len(reference)),
        ):
            parts.append(compare(cells.take(folds == k), singlets, others))
            where.append(offset + np.flatnonzero(folds == k))
    in_order = np.argsort(np.concatenate(where))
    return Comparison.join(parts).take(in_order), np.concatenate([fold, fold_of_doublet])


def fit_doublets(
    reference: Cells, rate: float, seed: int, model: VAE, device
) -> tuple[DoubletModel, pd.DataFrame]:
    """Simulate, learn and calibrate; and what came of it on held-out cells.

    ``reference``: training and validation cells. The model is at home with training cells, as it is
    not with those to be scored, so that their scores are moved to those of validation cells before
    they calibrate (:func:`as_unseen`). The table has a row each reference cell and doublet:
    is_doublet, is_unseen (validation cells and doublets), probability (of a classifier and a
    calibration without the cell's fold), weight (sums to 1, doublets to the rate), and of doublets
    first, second and matched.
    """
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(reference)) % FOLDS
    n = DOUBLETS_PER_CELL * len(reference)
    doublets = simulate_doublets(reference, n, rng, model, device, within=fold)
    found, folds = compare_by_fold(reference, doublets, fold)
    is_doublet = np.arange(len(folds)) >= len(reference)
    log_odds = np.empty(len(folds))
    for k in range(FOLDS):
        others = fit_classifier(found.features[folds != k], is_doublet[folds != k])
        log_odds[folds == k] = others.decision_function(found.features[folds == k])
    log_depth = np.concatenate([reference.log_depth, doublets.cells.log_depth])
    likeness = Likeness.fit(found.unexplained[is_doublet], log_depth[is_doublet])
    score = guarded(log_odds, rate, likeness.p_value(found.unexplained, log_depth))
    is_unseen = reference.split == "validation"
    score[~is_doublet] = as_unseen(score[~is_doublet], is_unseen)
    # What was learned was learned beside all folds but one; so are other cells to be seen, or every
    # neighbour would be nearer to them.
    fitted = DoubletModel(
        rate,
        reference.take(fold != 0),
        doublets.take(fold[doublets.first] != 0),
        fit_classifier(found.features, is_doublet),
        likeness,
        Calibration.fit(score, is_doublet, rate),
    )
    held_out = _held_out_table(score, is_doublet, folds, rate)
    made = pd.DataFrame({name: getattr(doublets, name) for name in ("first", "second", "matched")})
    single = pd.DataFrame({"is_unseen": is_unseen})
    rows = pd.concat([single, made.assign(is_unseen=True)], ignore_index=True)
    return fitted, pd.concat([held_out, rows], axis=1)


def _held_out_table(
    score: np.ndarray, is_doublet: np.ndarray, folds: np.ndarray, rate: float
) -> pd.DataFrame:
    probability = np.empty(len(score))
    for k in range(FOLDS):
        other = Calibration.fit(score[folds != k], is_doublet[folds != k], rate)
        probability[folds == k] = other.apply(score[folds == k])
    weight = prior_weights(is_doublet, rate) / len(score)
    return pd.DataFrame({"is_doublet": is_doublet, "probability": probability, "weight": weight})
