"""Train the VAE on the reference's training cells (a job a seed)."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from job import InputError, job, write_atomically, write_json, write_parquet
from model_inputs import ModelInputs, device_or_error, read_model_inputs
from omics_vae.inference import embed
from omics_vae.model import VAE, Architecture, save_model
from omics_vae.pruning import ACTIVE_VARIANCE
from omics_vae.training import Progress, TrainingPlan, remove_checkpoint, train


def build_model(inputs: ModelInputs, settings: dict, seed: int) -> VAE:
    """A VAE of the configured shape, started as the null model of the training cells."""
    torch.manual_seed(seed)
    model = VAE(
        Architecture(
            n_genes=len(inputs.genes),
            n_latent=settings["n_latent"],
            n_hidden=settings["n_hidden"],
            dropout=settings["dropout"],
        )
    )
    model.start_from(inputs.split("train"))
    return model


def training_plan(settings: dict, seed: int) -> TrainingPlan:
    """The plan that config ``train`` describes."""
    names = [
        "max_steps",
        "batch_size",
        "learning_rate",
        "weight_decay",
        "kl_warmup_steps",
        "validation_interval",
        "patience",
        "min_improvement",
        "checkpoint_seconds",
    ]
    return TrainingPlan(**{name: settings[name] for name in names}, seed=seed)


LINE_EVERY = 250


class ProgressReport:
    """A bar on a terminal; in the log, a line every LINE_EVERY steps."""

    def __init__(self, log, label: str, max_steps: int):
        self.log, self.label, self.next_line = log, label, 0
        self.bar = tqdm(
            total=max_steps, desc=label, unit="step", disable=not sys.stderr.isatty(), leave=False
        )

    def __call__(self, progress: Progress) -> None:
        last = progress.history[-1]
        self.bar.update(progress.step - self.bar.n)
        self.bar.set_postfix(beta=f"{last['beta']:.2f}", elbo=f"{last['validation_elbo']:.1f}")
        if progress.step >= self.next_line or progress.stopped_by:
            self.next_line = progress.step + LINE_EVERY
            self.log.info(
                "%s: step %d, epoch %.1f, beta %.2f, ELBO %.2f (train) %.2f (held-out) nats a cell",
                self.label,
                progress.step,
                last["epoch"],
                last["beta"],
                last["train_elbo"],
                last["validation_elbo"],
            )
        if progress.stopped_by:
            self.bar.close()


def run_training(
    model: VAE, inputs: ModelInputs, plan: TrainingPlan, device, params, log, label: str
) -> Progress:
    """Train and turn what the user can mend into one line.

    ``params``: the rule's ``checkpoint`` path and its ``code`` hash; edited code starts afresh.
    """
    try:
        return train(
            model,
            inputs.split("train"),
            inputs.split("validation"),
            plan,
            device,
            Path(params.checkpoint),
            ProgressReport(log, label, plan.max_steps),
            tag=params.code,
        )
    except FloatingPointError as error:
        raise InputError(f"{label}: {error}") from error


def kl_table(progress: Progress) -> pd.DataFrame:
    """KL of each dimension at each evaluation: step, dimension, kl (nats a cell)."""
    return pd.DataFrame(
        [
            {"step": row["step"], "dimension": j, "kl": value}
            for row, kl in zip(progress.history, progress.kl, strict=True)
            for j, value in enumerate(kl)
        ]
    )


def training_warnings(progress: Progress, plan: TrainingPlan, active: int, n_latent: int) -> list:
    """What a reader of the report should worry about, each with its mend."""
    found = []
    if progress.stopped_by == "max_steps":
        found.append(
            f"Training reached max_steps ({plan.max_steps}) before the held-out ELBO stopped "
            "improving; raise train.max_steps."
        )
    if active == 0:
        found.append(
            "Posterior collapse: no latent dimension is active, every cell gets the same profile; "
            "lower train.dropout or train.weight_decay, or check that the reference varies."
        )
    elif active == n_latent:
        found.append(
            f"All {n_latent} latent dimensions are active, there may be more to learn; "
            "raise train.n_latent."
        )
    return found


def write_model(model: VAE, genes: list[str], output) -> None:
    """model.safetensors and model.json, each put in place at once."""
    weights, description = Path(output.weights), Path(output.description)
    write_atomically(
        weights,
        lambda w: write_atomically(description, lambda d: save_model(model, w, d, genes)),
    )


if __name__ == "__main__":
    with job(snakemake) as log:
        params = snakemake.params
        torch.set_num_threads(snakemake.threads)
        device = device_or_error(params.device)
        inputs = read_model_inputs(snakemake.input.counts, snakemake.input.library_size)
        plan = training_plan(params.settings, params.seed)
        model = build_model(inputs, params.settings, params.seed)
        progress = run_training(model, inputs, plan, device, params, log, "train_vae")
        mean, _ = embed(model, inputs.split("validation"), device)
        active = int((mean.var(0) > ACTIVE_VARIANCE).sum())
        n_train = len(inputs.split("train"))
        write_parquet(pd.DataFrame(progress.history), snakemake.output.history)
        write_parquet(kl_table(progress), snakemake.output.kl)
        write_json(
            {
                "n_train": n_train,
                "n_validation": len(inputs.split("validation")),
                "n_genes": len(inputs.genes),
                "n_latent": model.architecture.n_latent,
                "steps": progress.step,
                "steps_per_epoch": int(np.ceil(n_train / plan.batch_size)),
                "warmup_ends_at_step": plan.kl_warmup_steps,
                "best_step": progress.best_step,
                "best_elbo": progress.best_elbo,
                "stopped_by": progress.stopped_by,
                "active_units": active,
                "seed": params.seed,
                "device": device.type,
                "threads": snakemake.threads,
                "warnings": training_warnings(progress, plan, active, model.architecture.n_latent),
            },
            snakemake.output.summary,
        )
        write_model(model, inputs.genes, snakemake.output)
        remove_checkpoint(Path(params.checkpoint))
