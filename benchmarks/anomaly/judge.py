"""How well a score finds what was hidden, how honest its p-values are, and who is ahead."""

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, ks_1samp, kstwo, spearmanr, uniform
from sklearn.metrics import average_precision_score, roc_auc_score

OURS, ORACLE = "anomics", "oracle"
ALPHA = 0.1  # false discovery rate, the pipeline's default
NOMINAL = 0.05
FIFTHS = 5
RANKED = ["auroc", "auprc", "recall"]  # larger is better
MEASURES = [*RANKED, "fdp"]


# ---- one score of one query


def conformal_p(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """(1 + #{calibration >= s}) / (n + 1), written again: a judge borrows nothing of the judged."""
    below = np.searchsorted(np.sort(calibration), scores, side="left")
    return (1 + len(calibration) - below) / (len(calibration) + 1)


def flag(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg at ``ALPHA`` (cells,) bool."""
    return false_discovery_control(p) <= ALPHA


def power(is_hidden: np.ndarray, score: np.ndarray, flagged: np.ndarray) -> dict:
    """How well the score ranks the hidden cells, and what flagging at the FDR gave."""
    false = int((flagged & ~is_hidden).sum())
    return {
        "auroc": roc_auc_score(is_hidden, score),
        "auprc": average_precision_score(is_hidden, score),
        "recall": flagged[is_hidden].mean(),
        "fdp": false / max(1, flagged.sum()),
        "n_flagged": int(flagged.sum()),
    }


def validity(
    p: np.ndarray, score: np.ndarray, flagged: np.ndarray, depth: np.ndarray, n_calibration: int
) -> dict:
    """What the p-values of a query without anomalies look like; all that is flagged is false.

    ``ks``: the largest distance of their distribution from the uniform one. Ranked against the same
    n calibration cells, m p-values depend on each other and scatter as the two-sample statistic
    does: ``ks_p`` takes nm/(n+m) for their number, a test of m independent ones would reject too
    often.
    """
    effective = max(1, round(len(p) * n_calibration / (len(p) + n_calibration)))
    ks = ks_1samp(p, uniform.cdf).statistic
    by_depth = p[np.argsort(depth, kind="stable")] <= NOMINAL
    fifths = [float(part.mean()) for part in np.array_split(by_depth, FIFTHS)]
    return {
        "n_query": len(p),
        "n_calibration": n_calibration,
        "ks": ks,
        "ks_p": kstwo.sf(ks, effective),
        "fdp": float(flagged.any()),
        "n_flagged": int(flagged.sum()),
        "spearman_depth": spearmanr(score, depth).statistic,
        "fpr": by_depth.mean(),
        **{f"fpr_depth_{i}": rate for i, rate in enumerate(fifths, start=1)},
    }


# ---- all methods of all sets


def standard_error(values: pd.Series) -> float:
    """Of the mean; NaN of a single value."""
    return values.std(ddof=1) / np.sqrt(len(values))


def peers_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of those that ours competes with; not the oracle's, which knows the truth."""
    return table[~table["method"].isin([OURS, ORACLE])]


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """With the rank of each method in its set and split by each measure, 1 the best.

    The oracle has none.
    """
    table = table.copy()
    competing = table[table["method"] != ORACLE]
    for measure in RANKED:
        by_set = competing.groupby(["set", "split"])[measure]
        table[f"rank_{measure}"] = by_set.rank(ascending=False)
    return table


def by_method(table: pd.DataFrame) -> pd.DataFrame:
    """Each method's means over the sets, and the standard deviation of these over the splits.

    ``table``: of one group of sets, as :func:`ranked` returns it. The last row takes the best peer
    of each set, chosen afterwards by the measure itself: no method does that, it is the bar.
    """
    ranks = [f"rank_{measure}" for measure in RANKED]
    of_split = table.groupby(["method", "split"])[MEASURES].mean()
    means = table.groupby("method")[MEASURES + ranks].mean()
    for measure in RANKED:
        means[f"{measure}_sd"] = of_split[measure].groupby("method").std(ddof=1)
    means = means.sort_values("auroc", ascending=False)
    means.loc["best peer of each set"] = best_peers(table).mean(numeric_only=True)
    return means.reset_index()


def best_peers(table: pd.DataFrame) -> pd.DataFrame:
    """Of each set the highest mean over the splits by each measure; ``<measure>_peer``: whose.

    Where no peer finds anything, nobody is the best.
    """
    means = peers_of(table).groupby(["set", "method"], sort=False)[RANKED].mean()
    best = {}
    for measure in RANKED:
        by_set = means[measure].groupby("set", sort=False)
        best[measure] = by_set.max()
        best[f"{measure}_peer"] = by_set.idxmax().str[1].where(best[measure] > 0, "none")
    return pd.DataFrame(best)


def by_set(table: pd.DataFrame) -> pd.DataFrame:
    """Ours beside the best peer of each set, chosen afterwards by each measure.

    ``<measure>_sd``: of ours over the splits. ``<measure>_ahead``: ours less the peer's.
    """
    ours = table[table["method"] == OURS].groupby("set", sort=False)
    means, spread, best = ours[MEASURES].mean(), ours[RANKED].std(ddof=1), best_peers(table)
    columns = {"splits": ours.size()}
    for measure in RANKED:
        columns |= {
            measure: means[measure],
            f"{measure}_sd": spread[measure],
            f"{measure}_peer": best[f"{measure}_peer"],
            f"{measure}_of_peer": best[measure],
            f"{measure}_ahead": means[measure] - best[measure],
        }
    return pd.DataFrame(columns | {"fdp": means["fdp"]}).reset_index()


def thinning_loss(full: pd.DataFrame, thinned: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """AUROC that each method loses when the hidden cells have a third of their counts.

    ``mean``, ``worst`` (and ``worst_set``): over the sets, each the mean over the splits that both
    variants have; ``suffix`` is what the name of a thinned set ends in.
    """
    keys = ["set", "split", "method"]
    thinned = thinned.assign(set=thinned["set"].str.removesuffix(suffix))
    pairs = full[[*keys, "auroc"]].merge(
        thinned[[*keys, "auroc"]], on=keys, suffixes=("", "_thinned")
    )
    loss = (pairs["auroc"] - pairs["auroc_thinned"]).groupby([pairs["method"], pairs["set"]]).mean()
    by_method = loss.groupby("method")
    means = pairs.groupby("method")[["auroc", "auroc_thinned"]].mean()
    found = means.assign(
        mean=by_method.mean(), worst=by_method.max(), worst_set=by_method.idxmax().str[1]
    )
    return found.sort_values("auroc_thinned", ascending=False).reset_index()


def error_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Of each all-normal set and method the means over the splits, the FDP's with its s.e.

    ``ks_rejected``: share of splits whose p-values differ from uniform at 5 % (``ks_p``).
    """
    rates = ["fpr", *(f"fpr_depth_{i}" for i in range(1, FIFTHS + 1))]
    groups = table.groupby(["set", "method"], sort=False)
    means = groups[["fdp", "ks", "spearman_depth", *rates]].mean()
    means.insert(0, "splits", groups.size())
    means.insert(2, "fdp_se", groups["fdp"].agg(standard_error))
    rejected = table.assign(rejected=table["ks_p"] <= NOMINAL)
    means["ks_rejected"] = rejected.groupby(["set", "method"], sort=False)["rejected"].mean()
    return means.reset_index()
