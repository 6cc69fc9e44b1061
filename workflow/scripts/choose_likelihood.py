"""Compare the likelihoods: the one under which held-out cells are most probable.

Each candidate was trained as a fit of its own; the winner's files become those of the main fit.
"""

from pathlib import Path
from shutil import copyfile

import numpy as np
import pandas as pd
import torch

from job import job, write_atomically, write_json, write_tsv
from model_inputs import device_or_error, read_model, read_model_inputs
from omics_vae.inference import importance_weighted_evidence
from stored_counts import counts_memory

# From simple to rich: of two that the data cannot tell apart, the simpler one is taken.
RICHNESS = ("poisson", "nb", "zinb")
NAMES = {"nb": "negative binomial", "poisson": "Poisson"}
ERRORS = 2.0  # standard errors of the paired difference that a richer likelihood must gain


def compare(log_p: dict[str, np.ndarray]) -> tuple[pd.DataFrame, str]:
    """The table of likelihoods and the one to take.

    ``log_p``: log p(x) of the same cells (cells,) under each. Cell by cell differences have a far
    smaller error than the means, as a hard cell is hard for all. Starting from the simplest, a
    richer likelihood is taken when it gains more than two standard errors of that difference.
    """
    chosen = next(name for name in RICHNESS if name in log_p)
    for name in RICHNESS[RICHNESS.index(chosen) + 1 :]:
        if name in log_p:
            gain, se = paired(log_p[name] - log_p[chosen])
            if gain > ERRORS * se:
                chosen = name
    rows = []
    for name, values in log_p.items():
        gain, se = paired(values - log_p[chosen])
        mean, mean_se = paired(values)
        rows.append(
            {
                "likelihood": name,
                "log_p": mean,
                "log_p_se": mean_se,
                "difference": gain,
                "difference_se": se,
                "chosen": name == chosen,
            }
        )
    return pd.DataFrame(rows).sort_values("log_p", ascending=False, ignore_index=True), chosen


def paired(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def verdict_on_zeros(log_p: dict[str, np.ndarray]) -> str:
    """Whether held-out cells support zero inflation, against the best without it, in a sentence."""
    others = [name for name in NAMES if name in log_p]
    rival = max(others, key=lambda name: log_p[name].mean())
    gain, se = paired(log_p["zinb"] - log_p[rival])
    shown = f"{gain:+.3g} ± {se:.2g} nats a cell against the {NAMES[rival]}"
    if gain > ERRORS * se:
        return f"The data support zero inflation ({shown})."
    return f"Zero inflation is not supported by the data ({shown}, standard error)."


if __name__ == "__main__":
    with job(snakemake) as log:
        params, files = snakemake.params, snakemake.input
        torch.set_num_threads(snakemake.threads)
        device = device_or_error(params.device)
        memory = counts_memory(snakemake)
        inputs = read_model_inputs(files.counts, files.library_size, memory)
        candidates = [Path(path).parent for path in files.weights]
        log_p = {}
        for folder, likelihood in zip(candidates, params.likelihoods, strict=True):
            model, told = read_model(folder / "model.safetensors", folder / "model.json", inputs)
            found = importance_weighted_evidence(
                model, told.split("validation"), device, params.samples
            )
            log_p[likelihood] = found.log_p
        table, chosen = compare(log_p)
        winner = candidates[params.likelihoods.index(chosen)]
        for path in snakemake.output.fit:
            write_atomically(path, lambda p, path=path: copyfile(winner / Path(path).name, p))
        write_tsv(table, snakemake.output.comparison)
        write_json(
            {
                "chosen": chosen,
                "n_cells": len(next(iter(log_p.values()))),
                "samples": params.samples,
                "zeros": verdict_on_zeros(log_p),
                "warnings": [],
            },
            snakemake.output.choice,
        )
        log.info("choose_likelihood: %s of %s", chosen, ", ".join(log_p))
