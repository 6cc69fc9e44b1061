"""Score the query cells against the reference and calibrate; or all cells, by cross-fitting."""

import numpy as np
import pandas as pd
import torch
from scipy.stats import binom

from bulk_words import of_unit
from detection import CROSS_FITTING, POOLED, detect, detect_cross_fitted, spearman
from evidence_channels import CHANNELS
from held_cells import SCORING_DEVICE, Cells, read_fits
from job import job, write_json, write_parquet, write_tsv
from omics_vae.anomaly import conditional_p
from omics_vae.inference import cell_elbo
from omics_vae.model import VAE
from stored_counts import counts_memory

DEPTH_FIFTHS = 5
NOMINAL = 0.05
FPR_BAND = 0.03, 0.07  # of p <= 5 % in a fifth of the depths; wider where cells are few
SPEARMAN_BAND = 0.1
# Without anomalies half of the query has p > 0.5. Where far fewer do, the query as a whole lies
# apart from the reference, as after another batch.
SHIFTED_BELOW, SHIFT_CELLS = 0.3, 50  # of fewer cells the share says nothing
TRIMMED = ["cell_id", "sample", "score", "library_size"]


def false_positives_by_depth(p: np.ndarray, depth: np.ndarray) -> list[float]:
    """Share of normal cells with p <= 0.05 in each fifth of the depth, shallow to deep."""
    p, depth = np.asarray(p), np.asarray(depth)
    fifths = np.array_split(np.argsort(depth, kind="stable"), DEPTH_FIFTHS)
    return [float((p[cells] <= NOMINAL).mean()) for cells in fifths]


def channel_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row a channel: what it is, how free of depth, in how many flagged cells it leads.

    ``table``: as in cells.parquet (split, library_size and the columns of
    :func:`detection.verdict_table`). Query cells that were flagged are left out of
    ``spearman_depth_query``.
    """
    normal, unflagged = usual_cells(table)
    rows = []
    for name in [column[2:] for column in table if column.startswith("z_")]:
        rates = false_positives_by_depth(normal[f"p_{name}"], normal["library_size"])
        rows.append(
            {
                "channel": name,
                "kind": CHANNELS[name][0],
                "what": CHANNELS[name][1],
                "spearman_depth": spearman(normal[f"z_{name}"], normal["library_size"]),
                "spearman_depth_query": spearman(unflagged[f"z_{name}"], unflagged["library_size"]),
                "fpr_low_depth": rates[0],
                "fpr_high_depth": rates[-1],
                "n_leading": int((table["leading_channel"] == name).sum()),
            }
        )
    return pd.DataFrame(rows)


def usual_cells(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Normal cells, and query cells that were not flagged.

    Normal are the calibration cells that were kept; those that were not flagged where cells are
    ranked among themselves.
    """
    query = table["split"] == "query"
    unflagged = table[query & ~table["is_anomaly"]]
    return (unflagged if query.all() else table[~query & ~table["trimmed"]]), unflagged


def summarise(table: pd.DataFrame, settings: dict, observations: str = "cells") -> dict:
    """What the report says of the calibration, with its warnings.

    The depth curves were fitted on the calibration cells, so their own correlation with depth is
    small by construction; that of the query cells is the honest one.
    """
    normal, unflagged = usual_cells(table)
    query = table[table["split"] == "query"]
    is_ranking = bool((table["calibrated_by"] == CROSS_FITTING).all())
    n, m = len(normal), len(query)
    per_fifth = max(1, n // DEPTH_FIFTHS)
    low, high = binom.ppf([0.001, 0.999], per_fifth, NOMINAL) / per_fifth
    # With very many cells chance alone would allow 5.1 % and not 5.2 %, which is nobody's worry.
    low, high = min(low, FPR_BAND[0]), max(high, FPR_BAND[1])
    batches = sorted(set(table["calibrated_by"]) - {POOLED, CROSS_FITTING})
    summary = {
        "is_ranking": is_ranking,
        "alpha": settings["alpha"],
        "guarantee": settings["guarantee"],
        "n_calibration": 0 if is_ranking else n,
        "n_query": m,
        "n_anomalies": int(table["is_anomaly"].sum()),
        "n_unflagged": len(unflagged),
        "n_trimmed": int(table["trimmed"].sum()),
        "calibrated_by_batch": batches,
        "n_pooled": int((query["calibrated_by"] == POOLED).sum()),
        "smallest_p": None if is_ranking else smallest_p(table, settings),
        "share_above_half": float((unflagged["p_value"] > 0.5).mean()) if len(unflagged) else 1.0,
        "channels": [column[2:] for column in table if column.startswith("z_")],
        "spearman_depth": spearman(normal["score"], normal["library_size"]),
        "spearman_depth_query": spearman(unflagged["score"], unflagged["library_size"]),
        "fpr_by_depth_fifth": false_positives_by_depth(normal["p_value"], normal["library_size"]),
    }
    # Benjamini-Hochberg: k cells at the smallest p pass when it is at most alpha k / m.
    needed = 0 if is_ranking else m * summary["smallest_p"] / settings["alpha"]
    summary["needed_together"] = int(np.ceil(needed - 1e-9))
    summary["bands"] = {
        "spearman_depth": max(SPEARMAN_BAND, 2.6 / np.sqrt(max(1, min(n, len(unflagged))))),
        "fpr": [float(low), float(high)],
        "needed_together": max(1, min(max(5, int(0.05 * m)), m // 4)),
    }
    warnings = calibration_warnings(summary)
    return summary | {"warnings": [of_unit(line, observations) for line in warnings]}


def smallest_p(table: pd.DataFrame, settings: dict) -> float:
    """The smallest p-value that a query cell can get, from the number of its calibration cells."""
    query = table["split"] == "query"
    normal = table[~query & ~table["trimmed"]]
    sizes = [
        len(normal) if name == POOLED else int((normal["calibrated_by"] == name).sum())
        for name in table.loc[query, "calibrated_by"].unique()
    ]
    p = np.array([1 / (max(sizes) + 1)])
    if settings["guarantee"] == "conditional":
        p = conditional_p(p, max(sizes), settings["conditional_delta"])
    return float(p[0])


def calibration_warnings(summary: dict) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    found = [] if summary["is_ranking"] else _warnings_of_resolution(summary)
    if summary["is_ranking"]:
        found.append(
            "There is no separate reference: every cell was scored by a model that had not seen "
            "it, and the cells were ranked among themselves. It is a ranking, no FDR guarantee; "
            "for one bring trusted normal cells as the reference."
        )
    found += _warnings_of_depth(summary)
    if summary["n_trimmed"]:
        found.append(
            f"{summary['n_trimmed']} calibration cells lie far from the others and were left out "
            "as contamination (anomaly/trimmed.tsv); look whether the reference is clean, or set "
            "anomaly.contamination."
        )
    if summary["calibrated_by_batch"] and summary["n_pooled"]:
        found.append(
            f"{summary['n_pooled']} query cells were ranked among the calibration cells of all "
            "batches, as their own has too few, though batches differ; bring more reference cells "
            "of their batch."
        )
    enough = min(summary["n_calibration"], summary["n_unflagged"]) >= SHIFT_CELLS
    if enough and summary["share_above_half"] < SHIFTED_BELOW:
        found.append(
            f"Only {100 * summary['share_above_half']:.0f} % of the query cells that were not "
            "flagged have p > 0.5, as half of normal cells would: the whole query lies apart from "
            "the reference, by condition or by batch; bring reference cells of the same batches or "
            "of more donors (preprocess.split.by: donor) to tell the two apart."
        )
    if "unseen_genes" not in summary["channels"]:
        found.append(
            "No gene is rare enough in the reference to notice one that it never shows (a panel, "
            "or under some 170 training cells); bring more reference cells to see such genes."
        )
    return found


def _warnings_of_resolution(summary: dict) -> list[str]:
    alpha, n, m = summary["alpha"], summary["n_calibration"], summary["n_query"]
    together = summary["needed_together"]
    mend = "bring more reference cells or raise preprocess.split.calibration."
    if together > m:
        return [
            f"{n} calibration cells are too few to flag any of {m} query cells at FDR {alpha:g}; "
            f"{mend}"
        ]
    if together > summary["bands"]["needed_together"]:
        return [
            f"With {n} calibration cells no cell is flagged at FDR {alpha:g} unless at least "
            f"{together} of {m} query cells are odder than all of them; {mend}"
        ]
    return []


def _warnings_of_depth(summary: dict) -> list[str]:
    found = []
    for name, cells in (("spearman_depth", "normal"), ("spearman_depth_query", "unflagged query")):
        if abs(summary[name]) > summary["bands"]["spearman_depth"]:
            found.append(
                f"The score of {cells} cells follows sequencing depth (Spearman "
                f"{summary[name]:.2f}); compare only cells of similar depth, or filter shallow "
                "cells (preprocess.filter_cells)."
            )
    low, high = summary["bands"]["fpr"]
    for fifth, rate in enumerate(summary["fpr_by_depth_fifth"], start=1):
        if not low <= rate <= high and not summary["is_ranking"]:
            found.append(
                f"In depth fifth {fifth} of {DEPTH_FIFTHS} {100 * rate:.0f} % of normal cells have "
                f"p <= {NOMINAL:g} where 5 % are expected; read hits of that depth with care."
            )
    return found


def elbo_of(fits: list[tuple[VAE, Cells]], device) -> pd.Series:
    """The ELBO of each calibration and query cell under the model that scores it, by cell_id."""
    found = []
    for model, cells in fits:
        scored = cells.of("calibration", "query")
        elbo = cell_elbo(model, scored.data, device, at=scored.posterior).of_cells
        found.append(pd.Series(elbo, index=scored.obs.index))
    return pd.concat(found)


if __name__ == "__main__":
    with job(snakemake) as log:
        params, output = snakemake.params, snakemake.output
        settings = params.settings
        torch.set_num_threads(snakemake.threads)
        device = SCORING_DEVICE
        fits = read_fits(snakemake.input, params.folds, counts_memory(snakemake))
        model, cells = fits[0]
        is_cross_fitted = params.folds[0] is not None
        if is_cross_fitted:
            verdict = detect_cross_fitted(fits, settings, params.seed, device)
        else:
            held_out = cells.of("validation", "calibration", "query")
            verdict = detect(model, cells.of("train"), held_out, settings, params.seed, device)
        # Cells in the order of counts.h5ad, whatever the order of the folds.
        order = cells.obs.index[cells.obs.index.isin(verdict.index)]
        verdict = verdict.loc[order]
        scored = cells.take(cells.obs.index.get_indexer(order))
        table = pd.DataFrame(
            {
                "cell_id": order.to_numpy(),
                "sample": scored.obs["sample"].astype(str).to_numpy(),
                "role": scored.obs["role"].astype(str).to_numpy(),
                "split": "query" if is_cross_fitted else scored.split,
                "library_size": scored.size,
            }
        )
        table = pd.concat([table, verdict.reset_index(drop=True)], axis=1)
        table["elbo"] = elbo_of(fits, device).loc[order].to_numpy()
        summary = summarise(table, settings, params.observations)
        write_parquet(table, output.cells)
        write_tsv(table.loc[table["trimmed"], TRIMMED], output.trimmed)
        write_tsv(channel_table(table), output.channels)
        write_json(summary, output.summary)
        log.info(
            "detect_anomalies: %d of %d query %s at FDR %g",
            summary["n_anomalies"],
            summary["n_query"],
            params.observations,
            settings["alpha"],
        )
