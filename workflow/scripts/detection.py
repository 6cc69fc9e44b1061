"""From the channels of evidence to a calibrated verdict on each cell."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, kruskal, spearmanr
from sklearn.mixture import GaussianMixture

from evidence_channels import KINDS, raw_channels, standardise
from held_cells import Cells
from omics_vae import anomaly
from omics_vae.model import VAE

# A batch is calibrated by its own cells where the calibration scores of the batches differ beyond
# chance and it has so many of them that its smallest p-value is at most 1 %.
BATCH_DIFFERENCE_P = 0.01
MIN_BATCH_CALIBRATION = 100
POOLED = ""  # the calibration group of a cell that is ranked among all batches
CROSS_FITTING = "cross-fitting"  # that of a cell that was scored without a calibration set


@dataclass(frozen=True)
class Verdict:
    """Calibration and query cells, in the order they came."""

    score: np.ndarray  # (cells,)
    p_value: np.ndarray  # (cells,) conformal; of calibration cells against the others
    trimmed: np.ndarray  # (cells,) bool: calibration cells that were left out as contamination
    group: np.ndarray  # (cells,) the batch whose calibration cells ranked the cell, or POOLED


def contamination(
    raw: dict[str, np.ndarray],
    is_calibration: np.ndarray,
    log_depth: np.ndarray,
    share: float | None,
) -> np.ndarray:
    """Calibration cells that are not normal themselves (cells,) bool.

    ``share``: so many of the oddest; None: those that are clearly far off. Sought in the ``raw``
    channels: a standardisation that foreign cells took part in would hide them.
    """
    of_calibration = {
        name: anomaly.robust_sds(score, is_calibration)[is_calibration]
        for name, score in raw.items()
    }
    scores = anomaly.kind_scores(of_calibration, KINDS)
    found = np.zeros(len(is_calibration), dtype=bool)
    if share is None:
        found[is_calibration] = anomaly.contaminated(scores)
    else:
        # By tails, not ranks: cells that are odd together share the first ranks, and hide.
        score = anomaly.combine_tails(scores, log_depth[is_calibration])
        found[is_calibration] = oddest(score, share)
    return found


def judge(
    channels: dict[str, np.ndarray],
    is_calibration: np.ndarray,
    trimmed: np.ndarray,
    log_depth: np.ndarray,
    batch: np.ndarray | None,
    settings: dict,
) -> Verdict:
    """Standardised channels (cells,) -> combined score -> conformal p-value.

    ``trimmed`` calibration cells rank nobody; ``settings``: config ``anomaly``.
    """
    trusted = is_calibration & ~trimmed
    score = anomaly.combine_kinds(anomaly.kind_scores(channels, KINDS), trusted, log_depth)
    group = calibration_groups(score, trusted, batch, settings["by_batch"])
    p_value = np.empty(len(score))
    for name in sorted(set(group)):
        members = group == name
        # Whoever is pooled is ranked among the cells of all batches.
        ranked = np.ones(len(group), dtype=bool) if name == POOLED else members
        found = anomaly.ranked_p(score[ranked], trusted[ranked])
        if settings["guarantee"] == "conditional":
            n = int(trusted[ranked].sum())
            found = anomaly.conditional_p(found, n, settings["conditional_delta"])
        p_value[members] = found[members[ranked]]
    return Verdict(score, p_value, trimmed, group)


def oddest(score: np.ndarray, share: float) -> np.ndarray:
    """The ``share`` of the cells with the largest scores (cells,) bool."""
    found = np.zeros(len(score), dtype=bool)
    found[np.argsort(-score, kind="stable")[: int(np.ceil(share * len(score)))]] = True
    return found


def calibration_groups(
    score: np.ndarray, trusted: np.ndarray, batch: np.ndarray | None, by_batch: str
) -> np.ndarray:
    """The batch among whose calibration cells each cell is ranked; POOLED for all (cells,).

    ``by_batch``: auto (where the Kruskal-Wallis test says that the batches differ), always, never.
    A batch with too few calibration cells of its own is pooled.
    """
    pooled = np.full(len(score), POOLED, dtype=object)
    if batch is None or by_batch == "never":
        return pooled
    of_batch = {name: score[trusted & (batch == name)] for name in sorted(set(batch))}
    filled = [values for values in of_batch.values() if len(values)]
    if len(of_batch) < 2 or not filled:
        return pooled
    if by_batch == "auto":
        differ = len(filled) > 1 and np.ptp(score[trusted]) > 0
        if not differ or kruskal(*filled).pvalue >= BATCH_DIFFERENCE_P:
            return pooled
    enough = [name for name, values in of_batch.items() if len(values) >= MIN_BATCH_CALIBRATION]
    return np.where(np.isin(batch, enough), batch, POOLED).astype(object)


def judge_among_themselves(channels: dict[str, np.ndarray], log_depth: np.ndarray) -> Verdict:
    """Standardised channels -> combined score -> p-value where there are no calibration cells."""
    score = anomaly.combine_tails(anomaly.kind_scores(channels, KINDS), log_depth)
    nobody = np.zeros(len(score), dtype=bool)
    group = np.full(len(score), CROSS_FITTING, dtype=object)
    return Verdict(score, anomaly.tail_p(score), nobody, group)


def verdict_table(
    channels: dict[str, np.ndarray], verdict: Verdict, query: np.ndarray, alpha: float
) -> pd.DataFrame:
    """The verdict on calibration and query cells, a row a cell.

    Columns: score, p_value, q_value (query cells only, Benjamini-Hochberg), is_anomaly
    (q_value <= alpha), trimmed, calibrated_by, leading_channel of a flagged cell ("" of others),
    z_ and p_ of each channel.
    """
    q_value = np.full(len(query), np.nan)
    q_value[query] = false_discovery_control(verdict.p_value[query], method="bh")
    flagged = np.nan_to_num(q_value, nan=1.0) <= alpha
    # By distance from normal: ranks tie where several channels pass all calibration cells.
    leads = np.array(list(channels))[np.argmax(np.stack(list(channels.values())), axis=0)]
    trusted = ~query & ~verdict.trimmed
    p_channel = {
        name: anomaly.ranked_p(score, trusted) if trusted.any() else anomaly.tail_p(score)
        for name, score in channels.items()
    }
    return pd.DataFrame(
        {
            "score": verdict.score,
            "p_value": verdict.p_value,
            "q_value": q_value,
            "is_anomaly": flagged,
            "trimmed": verdict.trimmed,
            "calibrated_by": verdict.group.astype(str),
            "leading_channel": np.where(flagged, leads, ""),
            **{f"z_{name}": score for name, score in channels.items()},
            **{f"p_{name}": p for name, p in p_channel.items()},
        }
    )


def batches_of(cells: Cells) -> np.ndarray | None:
    """The column ``batch`` as strings; None where the metadata have none."""
    return cells.obs["batch"].astype(str).to_numpy(object) if "batch" in cells.obs else None


def detect(
    model: VAE,
    train: Cells,
    held_out: Cells,
    settings: dict,
    seed: int,
    device,
    mixture: GaussianMixture | None = None,
    residuals: dict[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Score the calibration and query cells among ``held_out``: :func:`verdict_table` by cell_id.

    ``held_out``: cells of the splits validation, calibration and query. Validation cells chose the
    stopping point, so they help to set the scale but not to rank. ``mixture`` and ``residuals``:
    as in :func:`evidence_channels.raw_channels`.
    """
    known = {"mixture": mixture, "residuals": residuals}
    raw = raw_channels(model, train, held_out, settings, seed, device, **known)
    split, log_depth = held_out.split, held_out.log_depth
    trimmed = contamination(raw, split == "calibration", log_depth, settings["contamination"])
    channels = standardise(raw, log_depth, (split != "query") & ~trimmed)
    ranked = split != "validation"
    scored = held_out.take(ranked)
    channels = {name: score[ranked] for name, score in channels.items()}
    query = scored.split == "query"
    verdict = judge(
        channels, ~query, trimmed[ranked], scored.log_depth, batches_of(scored), settings
    )
    table = verdict_table(channels, verdict, query, settings["alpha"])
    return table.set_index(scored.obs.index.rename("cell_id"))


def detect_cross_fitted(
    folds: list[tuple[VAE, Cells]], settings: dict, seed: int, device
) -> pd.DataFrame:
    """Score every cell by a model that has not seen it: :func:`verdict_table` by cell_id.

    ``folds``: the model of each fold, and all cells with those of the fold as its query. Cells are
    ranked among themselves, so the group that a cell belongs to is no evidence: it is in the
    training cells of all other folds.
    """
    parts, tables = [], []
    for model, cells in folds:
        held_out = cells.of("validation", "query")
        raw = raw_channels(model, cells.of("train"), held_out, settings, seed, device, group=False)
        everyone = np.ones(len(held_out), dtype=bool)
        query = held_out.split == "query"
        standardised = standardise(raw, held_out.log_depth, everyone)
        parts.append({name: score[query] for name, score in standardised.items()})
        tables.append(held_out.take(query))
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    channels = {name: np.concatenate([part[name] for part in parts]) for name in shared}
    log_depth = np.concatenate([cells.log_depth for cells in tables])
    verdict = judge_among_themselves(channels, log_depth)
    table = verdict_table(channels, verdict, np.ones(len(log_depth), dtype=bool), settings["alpha"])
    names = np.concatenate([cells.obs.index.to_numpy() for cells in tables])
    return table.set_index(pd.Index(names, name="cell_id"))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; 0 where one of the two does not vary."""
    varies = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(spearmanr(x, y).statistic) if varies else 0.0
