"""Score the query cells against the reference, calibrate, and name the genes of each hit."""

import numpy as np
import pandas as pd
import torch
from scipy.stats import binom, false_discovery_control, spearmanr

from evidence_channels import CHANNELS, Cells, raw_channels, standardise
from job import job, write_json, write_parquet, write_tsv
from model_inputs import device_or_error
from omics_vae import anomaly
from omics_vae.inference import cell_elbo, decoded
from omics_vae.likelihoods import NegativeBinomial
from omics_vae.model import VAE, load_model

DEPTH_FIFTHS = 5
NOMINAL = 0.05
SPEARMAN_BAND = 0.1
GENE_COLUMNS = [
    "cell_id",
    "gene",
    "observed",
    "expected",
    "log2_fold_change",
    "p_value",
    "q_value",
    "direction",
    "null",
]


def gene_hits(model: VAE, cells: Cells, flagged: np.ndarray, alpha: float, device) -> pd.DataFrame:
    """Genes of each flagged cell that its expectation does not explain (BY within the cell).

    Genes of the model are held against what it decodes; all others against the reference's pooled
    rate at the cell's depth, under a negative binomial with theta = 1, which is generous.
    """
    data, at = cells.model_data(flagged), cells.posterior.take(flagged)
    null = np.full(len(cells.genes), "pooled", dtype=object)
    null[cells.in_model] = "model"
    tables = [pd.DataFrame(columns=GENE_COLUMNS)]
    for chunk, x, likelihood in decoded(model, data, at, device):
        rows = flagged[chunk]
        expected = cells.size[rows][:, None] * cells.pooled_rates
        observed = cells.counts[rows].toarray().astype(np.float64)
        pooled = NegativeBinomial(
            torch.from_numpy(np.log(expected)), torch.tensor(np.log(anomaly.POOLED_THETA))
        )
        surprise = pooled.surprise(observed)
        surprise[:, cells.in_model] = likelihood.surprise(x)
        expected[:, cells.in_model] = model.as_counts(likelihood.mean, cells.size[rows])
        p = np.exp(-surprise)
        q = np.stack([false_discovery_control(row, method="by") for row in p])
        i, g = np.nonzero(q <= alpha)
        ratio = (observed[i, g] + 0.5) / (expected[i, g] + 0.5)
        tables.append(
            pd.DataFrame(
                {
                    "cell_id": cells.obs.index.to_numpy()[rows[i]],
                    "gene": cells.genes.to_numpy()[g],
                    "observed": observed[i, g].astype(np.int64),
                    "expected": expected[i, g],
                    "log2_fold_change": np.log2(ratio),
                    "p_value": p[i, g],
                    "q_value": q[i, g],
                    "direction": np.where(observed[i, g] > expected[i, g], "up", "down"),
                    "null": null[g],
                }
            )
        )
    hits = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    return hits.sort_values(["cell_id", "p_value", "gene"], ignore_index=True)


def false_positives_by_depth(p: np.ndarray, depth: np.ndarray) -> list[float]:
    """Share of normal cells with p <= 0.05 in each fifth of the depth, shallow to deep."""
    p, depth = np.asarray(p), np.asarray(depth)
    fifths = np.array_split(np.argsort(depth, kind="stable"), DEPTH_FIFTHS)
    return [float((p[cells] <= NOMINAL).mean()) for cells in fifths]


def judge_cells(
    channels: dict[str, np.ndarray], query: np.ndarray, log_depth: np.ndarray, alpha: float
) -> pd.DataFrame:
    """The verdict on calibration and query cells from their standardised channels (cells,).

    Columns: score, p_value, q_value (query cells only, Benjamini-Hochberg), is_anomaly
    (q_value <= alpha), leading_channel of a flagged cell ("" of others), z_ and p_ of each channel.
    """
    kinds = {name: CHANNELS[name][0] for name in channels}
    verdict = anomaly.combine_channels(channels, kinds, ~query, log_depth)
    q_value = np.full(len(query), np.nan)
    q_value[query] = false_discovery_control(verdict.p_value[query], method="bh")
    flagged = np.nan_to_num(q_value, nan=1.0) <= alpha
    # By distance from normal: ranks tie where several channels pass all calibration cells.
    leads = np.array(list(channels))[np.argmax(np.stack(list(channels.values())), axis=0)]
    return pd.DataFrame(
        {
            "score": verdict.score,
            "p_value": verdict.p_value,
            "q_value": q_value,
            "is_anomaly": flagged,
            "leading_channel": np.where(flagged, leads, ""),
            **{f"z_{name}": score for name, score in channels.items()},
            **{f"p_{name}": p for name, p in verdict.p_channel.items()},
        }
    )


def channel_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row a channel: what it is, how free of depth, in how many flagged cells it leads.

    ``table``: as in cells.parquet (split, library_size and the columns of :func:`judge_cells`).
    Query cells that were flagged are left out of ``spearman_depth_query``.
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
    """Calibration cells, and query cells that were not flagged."""
    query = table["split"] == "query"
    return table[~query], table[query & ~table["is_anomaly"]]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; 0 where one of the two does not vary."""
    varies = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(spearmanr(x, y).statistic) if varies else 0.0


def summarise(table: pd.DataFrame, settings: dict) -> dict:
    """What the report says of the calibration, with its warnings.

    The depth curves were fitted on the calibration cells, so their own correlation with depth is
    small by construction; that of the query cells is the honest one.
    """
    normal, unflagged = usual_cells(table)
    n, m = len(normal), int((table["split"] == "query").sum())
    per_fifth = max(1, n // DEPTH_FIFTHS)
    low, high = binom.ppf([0.001, 0.999], per_fifth, NOMINAL) / per_fifth
    summary = {
        "alpha": settings["alpha"],
        "gene_alpha": settings["gene_alpha"],
        "n_calibration": n,
        "n_query": m,
        "n_anomalies": int(table["is_anomaly"].sum()),
        "smallest_p": 1 / (n + 1),
        # Benjamini-Hochberg: k cells at the smallest p pass when it is at most alpha k / m.
        "needed_together": int(np.ceil(m / (settings["alpha"] * (n + 1)) - 1e-9)),
        "channels": [column[2:] for column in table if column.startswith("z_")],
        "spearman_depth": spearman(normal["score"], normal["library_size"]),
        "spearman_depth_query": spearman(unflagged["score"], unflagged["library_size"]),
        "fpr_by_depth_fifth": false_positives_by_depth(normal["p_value"], normal["library_size"]),
        "bands": {
            "spearman_depth": max(SPEARMAN_BAND, 2.6 / np.sqrt(max(1, min(n, len(unflagged))))),
            "fpr": [float(low), float(high)],
            "needed_together": max(5, int(0.05 * m)),
        },
    }
    return summary | {"warnings": calibration_warnings(summary)}


def calibration_warnings(summary: dict) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    found, alpha = [], summary["alpha"]
    n, m, together = summary["n_calibration"], summary["n_query"], summary["needed_together"]
    mend = "bring more reference cells or raise preprocess.split.calibration."
    if together > m:
        found.append(
            f"{n} calibration cells are too few to flag any of {m} query cells at FDR {alpha:g}; "
            f"{mend}"
        )
    elif together > summary["bands"]["needed_together"]:
        found.append(
            f"With {n} calibration cells no cell is flagged at FDR {alpha:g} unless at least "
            f"{together} of {m} query cells are odder than all of them; {mend}"
        )
    for name, cells in (("spearman_depth", "normal"), ("spearman_depth_query", "unflagged query")):
        if abs(summary[name]) > summary["bands"]["spearman_depth"]:
            found.append(
                f"The score of {cells} cells follows sequencing depth (Spearman "
                f"{summary[name]:.2f}); compare only cells of similar depth, or filter shallow "
                "cells (preprocess.filter_cells)."
            )
    low, high = summary["bands"]["fpr"]
    for fifth, rate in enumerate(summary["fpr_by_depth_fifth"], start=1):
        if not low <= rate <= high:
            found.append(
                f"In depth fifth {fifth} of {DEPTH_FIFTHS} {100 * rate:.0f} % of normal cells have "
                f"p <= {NOMINAL:g} where 5 % are expected; read hits of that depth with care."
            )
    if "unseen_genes" not in summary["channels"]:
        found.append(
            "No gene is rare enough in the reference to notice one that it never shows (a panel, "
            "or under some 170 training cells); bring more reference cells to see such genes."
        )
    return found


if __name__ == "__main__":
    with job(snakemake) as log:
        settings, output = snakemake.params.settings, snakemake.output
        torch.set_num_threads(snakemake.threads)
        device = device_or_error(snakemake.params.device)
        model, description = load_model(snakemake.input.weights, snakemake.input.description)
        cells = Cells(
            snakemake.input.counts,
            snakemake.input.library_size,
            snakemake.input.latent,
            description,
        )
        held_out = cells.of("validation", "calibration", "query")
        split = cells.split[held_out]
        raw = raw_channels(model, cells, held_out, settings, snakemake.params.seed, device)
        standardised = standardise(raw, np.log(cells.size[held_out]), split != "query")
        # Validation cells chose the stopping point, so they help to set the scale but not to rank.
        ranked = split != "validation"
        scored = held_out[ranked]
        verdict = judge_cells(
            {name: score[ranked] for name, score in standardised.items()},
            split[ranked] == "query",
            np.log(cells.size[scored]),
            settings["alpha"],
        )
        at = cells.posterior.take(scored)
        elbo = cell_elbo(model, cells.model_data(scored), device, at=at).of_cells
        table = pd.DataFrame(
            {
                "cell_id": cells.obs.index.to_numpy()[scored],
                "sample": cells.obs["sample"].astype(str).to_numpy()[scored],
                "role": cells.obs["role"].astype(str).to_numpy()[scored],
                "split": cells.split[scored],
                "library_size": cells.size[scored],
            }
        )
        table = pd.concat([table, verdict], axis=1).assign(elbo=elbo)
        flagged = scored[table["is_anomaly"].to_numpy()]
        hits = gene_hits(model, cells, flagged, settings["gene_alpha"], device)
        summary = summarise(table, settings)
        write_parquet(table, output.cells)
        columns = ["cell_id", "sample", "score", "p_value", "q_value", "is_anomaly"]
        write_tsv(table.loc[table["split"] == "query", columns], output.cells_tsv)
        write_parquet(hits, output.genes)
        write_tsv(hits, output.genes_tsv)
        write_tsv(channel_table(table), output.channels)
        write_json(summary, output.summary)
        log.info(
            "detect_anomalies: %d of %d query cells at FDR %g",
            summary["n_anomalies"],
            summary["n_query"],
            settings["alpha"],
        )
