"""One side of the race: trains when told so, and says how long it took and how good it is.

::

    python side.py {anomics,scvi} COUNTS --likelihood nb --batch 128 --threads 1

Reads a line of JSON at a time from stdin and answers on stdout: ``{"epochs": 2}`` trains so many
more epochs, ``{"elbo": true}`` measures the held-out cells. The training is each side's own, from
the counts to Adam: SCVI.train of scvi-tools, the steps of omics_vae/training.py. Same layers: one
of 128 hidden units, 10 latent dimensions, dropout 0.1, theta a gene, observed library size.
"""

import argparse
import json
import logging
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

DRAWS = 4
HIDDEN, LATENT, DROPOUT = 128, 10, 0.1


class Anomics:
    """The fused step where it serves; ``precision`` as in config.yaml, ``autograd``: without it."""

    def __init__(self, training, held_out, options):
        """``training``, ``held_out``: CSR, or views of a matrix in a file."""
        from omics_vae import fused
        from omics_vae.counts import Counts
        from omics_vae.data import CountData, ShuffledBatches
        from omics_vae.initialisation import start_from
        from omics_vae.model import VAE, Architecture
        from omics_vae.training import TrainingPlan, autograd_step, make_optimizer, make_step

        def data(counts) -> CountData:
            counts = Counts.of(counts)
            return CountData(counts, np.log(counts.sum(1)))

        self.data, self.held_out = data(training), data(held_out)
        torch.manual_seed(options.seed)
        shape = {"n_genes": training.shape[1], "n_latent": LATENT, "n_hidden": HIDDEN}
        self.model = VAE(Architecture(**shape, dropout=DROPOUT, likelihood=options.likelihood))
        start_from(self.model, self.data)
        precision = {"auto": "bfloat16" if fused.has_bfloat16() else "float32"}
        plan = TrainingPlan(
            **{"max_steps": 10**9, "batch_size": options.batch, "learning_rate": options.rate},
            **{"weight_decay": 8000.0, "beta": 1.0, "kl_warmup": "linear", "kl_cycles": 1},
            **{"kl_warmup_steps": 200, "free_bits": 0.0, "validation_interval": 1},
            **{"patience": 1, "min_improvement": 0.0, "checkpoint_seconds": 1e9},
            **{"precision": precision.get(options.precision, options.precision)},
            seed=options.seed,
        )
        self.batches = ShuffledBatches(self.data, options.batch, options.seed)
        self.device = torch.device("cpu")
        self.gradients = make_step(self.model, len(self.data), plan, self.device)
        if options.precision == "autograd":
            self.gradients = lambda data, cells, at: autograd_step(
                self.model, data.chunk(cells, self.device), len(self.data), plan, at
            )
        self.optimizer = make_optimizer(self.model, plan, len(self.data))
        self.step = 0

    def train(self, epochs: int) -> None:
        for _ in range(epochs * self.batches.steps_per_epoch):
            self.gradients(*self.batches[self.step], self.step)
            self.optimizer.step()
            self.step += 1

    def elbo(self) -> float:
        from omics_vae.inference import cell_elbo

        return cell_elbo(self.model, self.held_out, self.device, DRAWS).mean


class Scvi:
    """scvi-tools as its users call it; without validation cells, logger and progress bar."""

    def __init__(self, training: sp.csr_matrix, held_out: sp.csr_matrix, options):
        import anndata as ad
        import scvi

        scvi.settings.verbosity = logging.ERROR
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        scvi.settings.seed = options.seed
        self.held_out, self.options = held_out, options
        cells = ad.AnnData(training)
        scvi.model.SCVI.setup_anndata(cells)
        self.model = scvi.model.SCVI(
            cells,
            n_hidden=HIDDEN,
            n_latent=LATENT,
            n_layers=1,
            dropout_rate=DROPOUT,
            gene_likelihood=options.likelihood,
        )

    def train(self, epochs: int) -> None:
        self.model.train(
            max_epochs=epochs,
            batch_size=self.options.batch,
            train_size=1.0,
            accelerator="cpu",
            plan_kwargs={"lr": self.options.rate},
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
        )

    @torch.inference_mode()
    def elbo(self) -> float:
        """log p(x|z) - KL, averaged as ours."""
        module, total = self.model.module.eval(), 0.0
        torch.manual_seed(0)
        for start in range(0, self.held_out.shape[0], 512):
            x = torch.from_numpy(self.held_out[start : start + 512].toarray())
            batch = torch.zeros(len(x), 1, dtype=torch.int64)
            q = module.inference(x=x, batch_index=batch)
            prior = torch.distributions.Normal(0.0, 1.0)
            kl = torch.distributions.kl_divergence(q["qz"], prior).sum(-1)
            for _ in range(DRAWS):
                decoded = module.generative(q["qz"].sample(), q["library"], batch)
                log_p = decoded["px"].log_prob(x).sum(-1)
                total += float((log_p - kl).double().sum()) / DRAWS
        module.train()
        return total / self.held_out.shape[0]


def answer(side, request: dict) -> dict:
    """What was asked for, and the peak memory so far."""
    found = {}
    if "epochs" in request:
        wall, cpu = time.perf_counter(), time.process_time()
        side.train(request["epochs"])
        found |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    if "elbo" in request:
        found["elbo"] = side.elbo()
    return found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["anomics", "scvi"])
    parser.add_argument("counts", type=Path, help=".npz of compare.py; .h5ad, our side only")
    parser.add_argument("--memory", type=float, default=0.0, help="bytes of an .h5ad to hold")
    parser.add_argument("--likelihood", choices=["nb", "zinb"], default="nb")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument("--seed", type=int, default=1)
    precisions = ["auto", "float32", "bfloat16", "autograd"]
    parser.add_argument("--precision", choices=precisions, default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # What libraries print must not get between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    if options.side == "anomics":
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))
    if options.counts.suffix == ".h5ad":
        from omics_vae.counts import Counts

        counts = Counts.open(str(options.counts), options.memory)
        n_held_out = min(len(counts) // 10, 10_000)
        parts = counts.take(slice(n_held_out, None)), counts.take(slice(0, n_held_out))
    else:
        counts = sp.load_npz(options.counts).tocsr().astype(np.float32)
        n_held_out = counts.shape[0] // 10
        parts = counts[n_held_out:], counts[:n_held_out]
    side = (Anomics if options.side == "anomics" else Scvi)(*parts, options)
    print(json.dumps({"cells": parts[0].shape[0]}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(side, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
