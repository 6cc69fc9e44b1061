"""Simulate counts of a known latent dimension, train wide, prune, and count what is left."""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))
sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "tests"))

from omics_vae.initialisation import start_from
from omics_vae.model import VAE, Architecture
from omics_vae.pruning import gather_evidence, signal_axes
from omics_vae.training import train
from simulated_counts import CPU, simulate
from train_vae import training_plan

CONFIG = yaml.safe_load((Path(__file__).resolve().parents[2] / "config.yaml").read_text())
N_GENES, LOADING, START = 1000, 0.3, 32


def recover(n_latent: int, n_cells: int, seed: int) -> dict:
    """One simulation: true dimension, cells, seed, and what pruning makes of it."""
    n_held_out = max(200, n_cells // 10)
    simulated = simulate(n_cells + n_held_out, N_GENES, n_latent, seed=seed, loading=LOADING)
    training = simulated.data(np.arange(n_cells))
    held_out = simulated.data(np.arange(n_cells, n_cells + n_held_out))
    settings = CONFIG["train"]
    torch.manual_seed(seed)
    model = VAE(Architecture(N_GENES, START, settings["n_hidden"], settings["dropout"]))
    start_from(model, training)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        progress = train(model, training, held_out, training_plan(settings, seed), CPU, checkpoint)
    evidence = gather_evidence(model, held_out, CPU)
    thresholds = CONFIG["prune"]["min_kl"], CONFIG["prune"]["min_ablation"]
    kept, sure = evidence.keep(*thresholds), evidence.sure(*thresholds)
    return {
        "true": n_latent,
        "cells": n_cells,
        "seed": seed,
        "kept": int(kept.sum()),
        "kept_low": int((kept & sure).sum()),
        "kept_high": int((kept | ~sure).sum()),
        "kl_only": int((evidence.kl > thresholds[0]).sum()),
        "signal_axes": signal_axes(training),
        "steps": progress.step,
    }


def main() -> None:
    """All combinations; a line each as it is ready, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of recovered.tsv")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[3, 5, 12])
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in options.seeds:
        for n_cells in options.cells:
            for n_latent in options.dimensions:
                rows.append(recover(n_latent, n_cells, seed))
                print(rows[-1], flush=True)
                table = pd.DataFrame(rows)
                table.to_csv(options.out / "recovered.tsv", sep="\t", index=False)
    within = (table["kept"] - table["true"]).abs() <= 1
    print(f"within one of the truth: {within.sum()} of {len(table)}")


if __name__ == "__main__":
    main()
