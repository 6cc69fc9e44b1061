"""Train anomics' VAE on a split of prepare.py and measure it as scvi_peer.py measures its own.

::

    python anomics_side.py SPLIT.npz --out CELLS.npz --likelihood nb --epochs 100 --warmup 50

The same shape as the peer's (one layer of 128 hidden units, batch norm, 10 latent dimensions,
dropout 0.1, a dispersion a gene, the sum over the given genes as library size), the same number of
optimiser steps on the same cells in batches of 128, the same number of importance samples. What
anomics does by default stays: the weight decay and the prior of the dispersion, the warm-up in
steps, and of all evaluations the weights with the best ELBO on the validation cells (which the peer
does not use) are kept. ``--layer-norm`` and ``--prior`` show other choices of config.yaml.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from prepare import Split, read_split

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))

from omics_vae.data import CountData
from omics_vae.inference import cell_elbo, importance_weighted_evidence
from omics_vae.initialisation import start_from
from omics_vae.model import VAE, Architecture
from omics_vae.training import TrainingPlan, train

CPU = torch.device("cpu")
BATCH = 128


def data_of(counts: sp.csr_matrix) -> CountData:
    """Counts with their row sums as library sizes."""
    return CountData(counts, np.log(np.asarray(counts.sum(1), dtype=np.float64).ravel()))


def fit(split: Split, options: argparse.Namespace) -> tuple[VAE, dict]:
    """The trained model, and the seconds that it took."""
    training, validation = data_of(split.counts["train"]), data_of(split.counts["validation"])
    seed = split.seed
    torch.manual_seed(seed)
    model = VAE(
        Architecture(
            n_genes=len(split.genes),
            n_latent=10,
            n_hidden=128,
            dropout=0.1,
            normalization="layer" if options.layer_norm else "batch",
            likelihood=options.likelihood,
            prior=options.prior,
            prior_components=10,
        )
    )
    start_from(model, training)
    per_epoch = -(-len(training) // BATCH)
    plan = TrainingPlan(
        max_steps=options.epochs * per_epoch,
        batch_size=BATCH,
        learning_rate=1e-3,
        weight_decay=options.weight_decay,
        beta=1.0,
        kl_warmup="linear",
        kl_warmup_steps=options.warmup * per_epoch,
        kl_cycles=1,
        free_bits=0.0,
        validation_interval=per_epoch,
        patience=options.epochs,  # as the peer: all epochs
        min_improvement=0.0,
        checkpoint_seconds=1e9,
        seed=seed,
    )
    started = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        progress = train(model, training, validation, plan, CPU, Path(folder) / "checkpoint")
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    best = {"best_epoch": progress.best_step / per_epoch}
    return model, best | {"train_seconds": wall, "train_cpu_seconds": cpu}


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("split", type=Path, help=".npz of prepare.py")
    parser.add_argument("--out", type=Path, required=True, help=".npz with a value a test cell")
    parser.add_argument("--likelihood", choices=["nb", "zinb", "poisson"], default="nb")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True, help="epochs until KL counts fully")
    parser.add_argument("--draws", type=int, default=1000, help="K, importance samples a cell")
    parser.add_argument("--weight-decay", type=float, default=8000.0)
    parser.add_argument("--layer-norm", action="store_true", help="anomics' default")
    parser.add_argument("--prior", choices=["normal", "mixture", "vamp"], default="normal")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    split = read_split(options.split)
    model, measured = fit(split, options)
    test = data_of(split.counts["test"])
    found = importance_weighted_evidence(model, test, CPU, options.draws, split.seed)
    elbo = cell_elbo(model, test, CPU, draws=100, seed=split.seed)
    np.savez_compressed(
        options.out,
        cell=split.cells["test"],
        log_p=found.log_p,
        elbo=elbo.of_cells,
        effective_draws=found.effective_samples,
    )
    row = {
        "dataset": split.dataset,
        "seed": split.seed,
        "likelihood": options.likelihood,
        "prior": options.prior,
        "normalization": model.architecture.normalization,
        "epochs": options.epochs,
        "draws": options.draws,
        "log_p": float(found.log_p.mean()),
        "log_p_se": float(found.log_p.std(ddof=1) / np.sqrt(len(test))),
        "elbo": elbo.mean,
        "median_effective_draws": float(np.median(found.effective_samples)),
        **measured,
    }
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))


if __name__ == "__main__":
    main()
