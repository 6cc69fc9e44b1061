"""How probably each scored cell is a doublet, and of which two groups of reference cells.

Doublets are simulated from reference cells; a classifier tells them from single cells by latent
place and by the genes of their neighbours, and is calibrated on cells that it has not seen. What
fits no doublet of the reference, as a cell of a novel type does not, is not called one.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from doublet_model import fit_doublets
from doublets import Doublets
from held_cells import SCORING_DEVICE, Cells, read_fits
from job import job, write_json, write_parquet
from omics_vae.inference import CHUNK
from omics_vae.model import VAE
from reference_groups import reference_groups
from stored_counts import counts_memory

MAX_REFERENCE = 5000  # a classifier of a few dozen coefficients gains nothing from more
SCORED_AT_ONCE = 40 * CHUNK  # cells; their distances to neighbours take 20 MB
BINS = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
LIKELY = 0.5
FEW_UNSEEN = 50
WEAK_AUROC = 0.65
TOO_MANY = 3.0  # times the rate


def choose_reference(cells: Cells, seed: int) -> tuple[Cells, np.ndarray]:
    """Training and validation cells in the order of their names, at most MAX_REFERENCE.

    And the name of the group that each is of.
    """
    reference = cells.of("train", "validation")
    found = reference_groups(reference.latent, reference.obs, seed)
    code = np.where(found.code < 0, found.nearest(reference.latent), found.code)
    chosen = np.argsort(reference.obs.index.to_numpy(), kind="stable")
    if len(chosen) > MAX_REFERENCE:
        rng = np.random.default_rng(seed)
        chosen = chosen[np.sort(rng.choice(len(chosen), MAX_REFERENCE, replace=False))]
    return reference.take(chosen).in_memory(), np.array(found.names, dtype=object)[code[chosen]]


def parents(groups: np.ndarray, doublets: Doublets, near: np.ndarray) -> pd.DataFrame:
    """parent_1 and parent_2 of each cell: the commonest pair of groups among its near doublets.

    ``groups`` (reference cells,); ``near`` (cells, neighbours) positions among ``doublets``. Within
    a pair the name that sorts first stands first, as it does where two pairs are equally common.
    """
    pair = np.sort(np.column_stack([groups[doublets.first], groups[doublets.second]]), axis=1)
    pairs, code = np.unique(pair.astype(str), axis=0, return_inverse=True)
    votes = np.zeros((len(near), len(pairs)), dtype=np.int64)
    np.add.at(votes, (np.arange(len(near))[:, None], code.ravel()[near]), 1)
    return pd.DataFrame(pairs[votes.argmax(1)], columns=["parent_1", "parent_2"])


def reliability(held_out: pd.DataFrame) -> list[dict]:
    """Mean probability and realised share of doublets in each bin of probability, weighted."""
    rows = []
    bins = np.digitize(held_out["probability"], BINS[1:-1])
    for k, (low, high) in enumerate(pairwise(BINS)):
        part = held_out[bins == k]
        if len(part):
            mean = {
                "predicted": np.average(part["probability"], weights=part["weight"]),
                "realised": np.average(part["is_doublet"], weights=part["weight"]),
            }
            means = {name: float(value) for name, value in mean.items()}
            rows.append({"from": low, "to": high, "n": len(part), **means})
    return rows


def summarise(table: pd.DataFrame, held_out: pd.DataFrame, groups: np.ndarray, rate: float) -> dict:
    """Numbers of summary.json.

    ``table``: cells.parquet; ``held_out``: of :func:`fit_doublets`; ``groups`` (reference cells,).
    """
    query = table.loc[table["split"] == "query", "doublet_probability"]
    single = held_out[~held_out["is_doublet"]]
    made = held_out[held_out["is_doublet"]]
    is_matched = made["matched"].to_numpy(bool)
    homotypic = groups[made["first"].to_numpy(int)] == groups[made["second"].to_numpy(int)]

    def auroc(chosen: np.ndarray) -> float | None:
        score = np.concatenate([single["probability"], made["probability"][chosen]])
        y = np.arange(len(score)) >= len(single)
        return float(roc_auc_score(y, score)) if y.any() else None

    names, sizes = np.unique(groups.astype(str), return_counts=True)
    return {
        "rate": rate,
        "n_reference": len(groups),
        "n_simulated": len(made),
        "n_unseen": int(single["is_unseen"].sum()),
        "n_query": len(query),
        "n_likely": int((query > LIKELY).sum()),
        "expected_share": float(query.mean()),
        "homotypic_share": float(homotypic.mean()),
        "auroc_matched": auroc(~homotypic & is_matched),
        "auroc_full": auroc(~homotypic & ~is_matched),
        "mean_probability_held_out": float((held_out["probability"] * held_out["weight"]).sum()),
        "reliability": reliability(held_out),
        "groups": [
            {"group": str(names[i]), "n_cells": int(sizes[i])}
            for i in np.argsort(-sizes, kind="stable")
        ],
    }


def doublet_warnings(summary: dict) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    found, rate = [], summary["rate"]
    if summary["n_unseen"] < FEW_UNSEEN:
        found.append(
            f"Doublet probabilities rest on only {summary['n_unseen']} validation cells; bring "
            "more reference cells or raise preprocess.split.validation."
        )
    auroc = summary["auroc_matched"]
    if auroc is None or auroc < WEAK_AUROC:
        how = "there are none of two groups" if auroc is None else f"AUROC {auroc:.2f}"
        found.append(
            f"Simulated doublets can hardly be told from single cells at the same depth ({how}): "
            "the reference cells are too alike or too shallow; do not rely on doublet_probability."
        )
    if summary["expected_share"] > TOO_MANY * rate:
        found.append(
            f"The query looks to have {100 * summary['expected_share']:.0f} % doublets where "
            f"doublets.rate says {100 * rate:.0f} %; set the rate of your experiment, and suspect "
            "types that lie between those of the reference."
        )
    return found


def score_fit(
    model: VAE, cells: Cells, rate: float, seed: int, device
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """cells.parquet of the cells that a model scores; held-out rows and groups of its reference."""
    reference, groups = choose_reference(cells, seed)
    # By the encoder alone, as the doublets are, also where the latent file holds refined ones.
    reference = reference.with_counts(reference.counts, model, device)
    fitted, held_out = fit_doublets(reference, rate, seed, model, device)
    tables, everyone = [], cells.of("calibration", "query")
    for start in range(0, len(everyone), SCORED_AT_ONCE):
        scored = everyone.take(slice(start, start + SCORED_AT_ONCE)).in_memory()
        scored = scored.with_counts(scored.counts, model, device)
        verdict, near = fitted.score(scored)
        identity = {
            "cell_id": scored.obs.index.to_numpy(),
            "sample": scored.obs["sample"].astype(str).to_numpy(),
            "split": scored.split,
        }
        named = parents(groups, fitted.doublets, near)
        tables.append(pd.concat([pd.DataFrame(identity), verdict, named], axis=1))
    return pd.concat(tables, ignore_index=True), held_out, groups


if __name__ == "__main__":
    with job(snakemake) as log:
        params, output = snakemake.params, snakemake.output
        torch.set_num_threads(snakemake.threads)
        device = SCORING_DEVICE
        rate = params.settings["rate"]
        fits = read_fits(snakemake.input, params.folds, counts_memory(snakemake))
        found = [score_fit(model, cells, rate, params.seed, device) for model, cells in fits]
        table = pd.concat([part for part, _, _ in found], ignore_index=True)
        # Without a query every fold has a classifier of its own, alike; the first one is reported.
        summary = summarise(table, *found[0][1:], rate)
        write_parquet(table, output.cells)
        write_json(summary | {"warnings": doublet_warnings(summary)}, output.summary)
        log.info("score_doublets: %d of %d query cells", summary["n_likely"], summary["n_query"])
