"""How probable held-out and query cells are, and what the encoder's shortcut costs.

The ELBO bounds log p(x) from below. The importance-weighted estimate comes closer; a posterior of
each cell's own, found by a few gradient steps, tells how much of the gap is the encoder's.
"""

import numpy as np
import pandas as pd
import torch

from job import job, write_json, write_parquet, write_tsv
from model_inputs import device_or_error, read_fit
from omics_vae.inference import importance_weighted_evidence, refine
from stored_counts import counts_memory

SPLITS = ("validation", "calibration", "query")
LARGE_GAP = 2.0  # nats a cell: an encoder that loses more is worth refining


def choose_cells(split: np.ndarray, at_most: int, seed: int) -> np.ndarray:
    """Positions of at most so many cells of each held-out split, in their order."""
    rng = np.random.default_rng(seed)
    chosen = []
    for name in SPLITS:
        cells = np.flatnonzero(split == name)
        chosen.append(rng.choice(cells, at_most, replace=False) if len(cells) > at_most else cells)
    return np.sort(np.concatenate(chosen))


def by_group(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means over the cells of each value of ``column``, with the standard error of the gap."""
    grouped = cells.groupby(cells[column].astype(str), observed=True)
    table = grouped[["elbo", "elbo_refined", "log_p", "gap"]].mean()
    table["gap_se"] = grouped["gap"].std(ddof=1) / np.sqrt(grouped.size())
    table["effective_samples"] = grouped["effective_samples"].median()
    table.insert(0, "n_cells", grouped.size())
    table.insert(0, "grouped_by", column)
    return table.rename_axis("group").reset_index()[["grouped_by", "group", *table.columns[1:]]]


def evidence_warnings(summary: dict) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    found = []
    if summary["gap"] > LARGE_GAP and not summary["for_scores"]:
        found.append(
            f"The encoder loses {summary['gap']:.2g} nats a cell against posteriors of the cells' "
            "own; score the anomalies from refined ones (refine.for_scores: true)."
        )
    return found


if __name__ == "__main__":
    with job(snakemake) as log:
        params, settings = snakemake.params, snakemake.params.refine
        torch.set_num_threads(snakemake.threads)
        device = device_or_error(params.device)
        model, inputs = read_fit(snakemake.input, counts_memory(snakemake))
        split = inputs.cells["split"].to_numpy()
        chosen = choose_cells(split, params.evidence["cells"], params.seed)
        data, obs = inputs.data.take(chosen), inputs.cells.iloc[chosen]
        found = refine(model, data, device, settings["steps"], settings["learning_rate"])
        weighted = importance_weighted_evidence(
            model, data, device, params.evidence["samples"], at=found.embedding
        )
        table = pd.DataFrame(
            {
                "cell_id": obs.index.to_numpy(),
                "split": split[chosen],
                "elbo": found.amortized,
                "elbo_refined": found.refined,
                "gap": found.gap,
                "log_p": weighted.log_p,
                "effective_samples": weighted.effective_samples,
            }
        )
        columns = [name for name in ("split", "sample", "cell_type") if name in obs]
        groups = pd.concat(
            [by_group(table.assign(**{name: obs[name].to_numpy()}), name) for name in columns],
            ignore_index=True,
        )
        normal = table[table["split"] != "query"]
        summary = {
            "n_cells": len(table),
            "n_normal": len(normal),
            "samples": params.evidence["samples"],
            "elbo": float(normal["elbo"].mean()),
            "log_p": float(normal["log_p"].mean()),
            "gap": float(normal["gap"].mean()),
            "gap_se": float(normal["gap"].std(ddof=1) / np.sqrt(len(normal))),
            "effective_samples": float(normal["effective_samples"].median()),
            "refine_steps": settings["steps"],
            "for_scores": settings["for_scores"],
        }
        write_parquet(table, snakemake.output.cells)
        write_tsv(groups, snakemake.output.groups)
        write_json(summary | {"warnings": evidence_warnings(summary)}, snakemake.output.summary)
        log.info("measure_evidence: gap %.2f nats a cell", summary["gap"])
