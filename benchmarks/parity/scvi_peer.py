"""Train scvi-tools' SCVI on a split of prepare.py and measure how well it predicts the test cells.

::

    python scvi_peer.py SPLIT.npz --out CELLS.npz --likelihood nb --epochs 100 --warmup 50

Its own defaults wherever the comparison does not ask for something: one layer of 128 hidden units,
10 latent dimensions, dropout 0.1, batches of 128, no batch key, the sum over the given genes as
observed library size. KL warm-up ends inside the training; no early stopping; the validation cells
stay unused. For each test cell, with dropout off and z_1..z_K drawn from q(z|x),

.. math:: \\log w_k = \\log p(x|z_k, s) + \\log p(z_k) - \\log q(z_k|x)

gives the estimate log mean w of log p(x|s) (from below; Burda et al. 2016, arXiv:1509.00519), the
ELBO mean log w, and the effective number of draws (sum w)^2 / sum w^2. ``--out`` holds ``cell``,
``log_p``, ``elbo`` and ``effective_draws``, each (cells,) in the order of the split; the line of
JSON on stdout their means. On the first ``--check`` cells scvi-tools' own estimate goes beside it.
On PBMC 3k some five of 1,000 draws count, so that the estimate is about a nat low or more, the
lower the poorer q is: compare at equal K, and the ELBO too.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import scvi
import torch
from prepare import Split, read_split

CELLS_AT_ONCE = 64
NUMBERS_AT_ONCE = 1_000_000  # draws x cells x genes; bounds memory (some 15 arrays of it)


def train(split: Split, options: argparse.Namespace) -> tuple[scvi.model.SCVI, dict]:
    """The model trained on the training cells, and the seconds (wall and CPU) that it took."""
    scvi.settings.seed = options.seed if options.seed is not None else split.seed
    cells = ad.AnnData(split.counts["train"].astype(np.float32))
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(
        cells,
        n_hidden=128,
        n_latent=10,
        n_layers=1,
        dropout_rate=0.1,
        gene_likelihood=options.likelihood,
        use_observed_lib_size=True,
    )
    started = time.perf_counter(), time.process_time()
    model.train(
        max_epochs=options.epochs,
        accelerator="cpu",
        train_size=1.0,
        batch_size=128,
        early_stopping=False,
        plan_kwargs={"lr": options.learning_rate, "n_epochs_kl_warmup": options.warmup},
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    return model, {"train_seconds": wall, "train_cpu_seconds": cpu}


def log_weights(module: scvi.module.VAE, x: torch.Tensor, draws: int) -> torch.Tensor:
    """log w of each draw and cell (draws, cells), float64, for counts (cells, genes)."""
    batch = torch.zeros(len(x), 1, dtype=torch.int64)
    posterior = module.inference(x=x, batch_index=batch)
    q, log_size = posterior["qz"], posterior["library"]  # (cells, latent), (cells, 1)
    at_once = max(1, NUMBERS_AT_ONCE // x.numel())
    weights = []
    for start in range(0, draws, at_once):
        z = q.sample((min(at_once, draws - start),))  # (draws, cells, latent)
        model = module.generative(z, log_size.expand(len(z), -1, -1), batch)
        log_p_x = model["px"].log_prob(x).sum(-1, dtype=torch.float64)
        log_p_z = model["pz"].log_prob(z).sum(-1, dtype=torch.float64)
        weights.append(log_p_x + log_p_z - q.log_prob(z).sum(-1, dtype=torch.float64))
    return torch.cat(weights)


@torch.inference_mode()
def evaluate(
    module: scvi.module.VAE, counts: sp.csr_matrix, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """log_p, elbo and effective_draws of each cell, see above; each (cells,) float64."""
    module.eval()
    torch.manual_seed(seed)
    found = {"log_p": [], "elbo": [], "effective_draws": []}
    for start in range(0, counts.shape[0], CELLS_AT_ONCE):
        x = counts[start : start + CELLS_AT_ONCE].toarray().astype(np.float32)
        log_w = log_weights(module, torch.from_numpy(x), draws)
        log_sum = log_w.logsumexp(0)
        found["log_p"].append(log_sum - np.log(draws))
        found["elbo"].append(log_w.mean(0))
        found["effective_draws"].append(torch.exp(2 * log_sum - (2 * log_w).logsumexp(0)))
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def check(model: scvi.model.SCVI, counts: sp.csr_matrix, log_p: np.ndarray, draws: int) -> dict:
    """Our estimate beside scvi-tools' for the cells of ``counts``: means, and their difference."""
    cells = ad.AnnData(counts.astype(np.float32))
    theirs = model.get_marginal_ll(cells, n_mc_samples=draws, return_mean=False)
    theirs = theirs.numpy().astype(np.float64)
    difference = log_p - theirs
    return {
        "check_cells": len(log_p),
        "check_log_p": log_p.mean(),
        "check_log_p_scvi": theirs.mean(),
        "check_difference_se": standard_error(difference),
        "check_largest_difference": np.abs(difference).max(),
    }


def standard_error(values: np.ndarray) -> float:
    """Of the mean."""
    return values.std(ddof=1) / np.sqrt(len(values))


def main() -> None:
    """Train, evaluate, check, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("split", type=Path, help=".npz of prepare.py")
    parser.add_argument("--out", type=Path, required=True, help=".npz with a value a test cell")
    parser.add_argument("--likelihood", choices=["nb", "zinb"], default="nb")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True, help="epochs until KL counts fully")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--draws", type=int, default=1000, help="K, importance samples a cell")
    parser.add_argument("--check", type=int, default=256, help="cells for scvi-tools' estimate")
    parser.add_argument("--seed", type=int, help="of the training; default: that of the split")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.warmup >= options.epochs:
        parser.error("the warm-up must end inside the training")
    torch.set_num_threads(options.threads)
    scvi.settings.verbosity = logging.WARNING  # stdout is for the line of JSON

    split = read_split(options.split)
    model, seconds = train(split, options)
    test = split.counts["test"]
    started = time.perf_counter()
    cells = evaluate(model.module, test, options.draws, split.seed)
    seconds["evaluate_seconds"] = time.perf_counter() - started
    np.savez_compressed(options.out, cell=split.cells["test"], **cells)
    row = {
        "dataset": split.dataset,
        "seed": scvi.settings.seed,
        "likelihood": options.likelihood,
        "epochs": options.epochs,
        "warmup": options.warmup,
        "draws": options.draws,
        "n_train": split.counts["train"].shape[0],
        "n_test": test.shape[0],
        "n_genes": test.shape[1],
        "log_p": cells["log_p"].mean(),
        "log_p_se": standard_error(cells["log_p"]),
        "elbo": cells["elbo"].mean(),
        "median_effective_draws": np.median(cells["effective_draws"]),
        **seconds,
    }
    if options.check:
        few = slice(options.check)
        row |= check(model, test[few], cells["log_p"][few], options.draws)
    rounded = {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
