"""Train the VAE on the reference's training cells (a job a seed)."""

import fcntl
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from design import Design, check_latent, make_design
from job import (
    InputError,
    Terminated,
    job,
    read_json,
    termination_postponed,
    write_atomically,
    write_json,
    write_parquet,
)
from model_inputs import ModelInputs, device_or_error, read_model_inputs
from omics_vae.checkpoint import remove_checkpoint
from omics_vae.collapse import (
    MIXTURE_DRAWS,
    Diagnosis,
    active_units,
    diagnose,
    mutual_information,
)
from omics_vae.data import CountData, ShuffledBatches
from omics_vae.fused import has_bfloat16, has_step
from omics_vae.inference import CellElbo, cell_elbo, embed
from omics_vae.initialisation import start_from
from omics_vae.model import VAE, Architecture, save_model
from omics_vae.pruning import EVIDENCE_DRAWS, signal_axes
from omics_vae.training import InterruptionError, Progress, TrainingPlan, train
from stored_counts import counts_memory

ARCHITECTURE = (
    "n_latent",
    "n_hidden",
    "dropout",
    "n_layers",
    "normalization",
    "likelihood",
    "dispersion",
    "gaussian_variance",
    "decoder",
    "library_size",
    "skip",
    "prior",
    "prior_components",
    "encode_covariates",
)
PLAN = (
    "max_steps",
    "batch_size",
    "learning_rate",
    "learning_rate_drops",
    "weight_decay",
    "beta",
    "kl_warmup",
    "kl_warmup_steps",
    "kl_cycles",
    "free_bits",
    "validation_interval",
    "patience",
    "min_improvement",
    "checkpoint_seconds",
)


def build_model(inputs: ModelInputs, settings: dict, design: Design, seed: int) -> VAE:
    """A VAE of the configured shape, started as the null model of the training cells."""
    torch.manual_seed(seed)
    model = VAE(
        Architecture(
            n_genes=len(inputs.genes),
            n_covariates=design.n_covariates,
            n_batches=design.n_batches,
            **{name: settings[name] for name in ARCHITECTURE},
        )
    )
    start_from(model, inputs.split("train"))
    return model


def training_plan(settings: dict, seed: int) -> TrainingPlan:
    """The plan that config ``train`` describes."""
    precision, is_auto = settings["precision"], settings["precision"] == "auto"
    if is_auto:
        precision = "bfloat16" if has_bfloat16() else "float32"
    chosen = {name: settings[name] for name in PLAN}
    return TrainingPlan(**chosen, precision=precision, precision_is_auto=is_auto, seed=seed)


LINE_EVERY = 250
BAR = "{desc} |{bar}| step {n_fmt} of at most {total_fmt}{postfix}"


def lock_terminal() -> int | None:
    """A lock on the terminal of standard error; None where there is none, or another job has it.

    Of several trainings at once one can draw a bar; the next takes over when it ends.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return None
    try:
        terminal = os.open(os.ttyname(sys.stderr.fileno()), os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    try:
        fcntl.flock(terminal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(terminal)
        return None
    return terminal


class ProgressReport:
    """A bar on a terminal; in the log, a line every LINE_EVERY steps.

    ``label``: what trains, for the log; ``fit``: what it trains, for the bar.
    """

    def __init__(self, log, label: str, fit: str, max_steps: int):
        self.log, self.label, self.fit, self.max_steps = log, label, fit, max_steps
        self.next_line, self.bar, self.terminal = 0, None, None

    def __call__(self, progress: Progress) -> None:
        last = progress.history[-1]
        self._draw(progress.step, f"ELBO {last['validation_elbo']:.1f}")
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
        if progress.stopped_by and self.bar:
            self.bar.close()
            os.close(self.terminal)

    def _draw(self, step: int, state: str) -> None:
        if not self.bar:
            self.terminal = lock_terminal()
            if self.terminal is None:
                return
            self.bar = tqdm(
                total=self.max_steps,
                initial=step,
                desc=f"{self.label} {self.fit}",
                bar_format=BAR,
                dynamic_ncols=True,
                leave=False,
            )
        self.bar.set_postfix_str(state, refresh=False)
        self.bar.update(step - self.bar.n)


def run_training(
    model: VAE,
    training: CountData,
    validation: CountData,
    plan: TrainingPlan,
    device,
    params,
    log,
    label: str,
) -> Progress:
    """Train; turn what the user can mend into one line, and stop at a checkpoint when asked to.

    ``params``: the rule's ``checkpoint`` path and ``code`` hashes; edited code starts afresh.
    """
    checkpoint = Path(params.checkpoint)
    report = ProgressReport(log, label, checkpoint.parent.name, plan.max_steps)
    with termination_postponed() as is_to_stop:
        try:
            return train(
                model,
                training,
                validation,
                plan,
                device,
                checkpoint,
                report,
                tag=params.code,
                say=lambda text: log.info("%s: %s", label, text),
                is_to_stop=is_to_stop,
            )
        except FloatingPointError as error:
            raise InputError(f"{label}: {error}") from error
        except InterruptionError as error:
            raise Terminated(str(error)) from error


def kl_table(progress: Progress) -> pd.DataFrame:
    """KL of each dimension at each evaluation: step, dimension, kl (nats a cell)."""
    return pd.DataFrame(
        [
            {"step": row["step"], "dimension": j, "kl": value}
            for row, kl in zip(progress.history, progress.kl, strict=True)
            for j, value in enumerate(kl)
        ]
    )


def training_warnings(
    progress: Progress,
    plan: TrainingPlan,
    architecture: Architecture,
    active: int,
    collapse: Diagnosis | None,
) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    found = []
    if progress.stopped_by == "max_steps":
        found.append(
            f"Training reached max_steps ({plan.max_steps}) before the held-out ELBO stopped "
            "improving; raise train.max_steps."
        )
    if collapse:
        found.append(
            "Posterior collapse: the latent variable says nothing about a cell. Probable cause, "
            f"the {collapse.cause}: {collapse.shown_by}; {collapse.mend}."
        )
    elif active == architecture.n_latent:
        found.append(
            f"All {active} latent dimensions are active, there may be more to learn; "
            "raise train.n_latent."
        )
    if architecture.skip != "none":
        found.append(
            f"With a skip connection ({architecture.skip}) the decoder sees the cell itself, so "
            "the ELBO is no bound on its likelihood and anomalies are decoded along; set "
            "train.skip to none unless you study the model."
        )
    return found


def validation_table(elbo: CellElbo, cells: pd.DataFrame) -> pd.DataFrame:
    """validation.parquet: a row a validation cell, so that fits can be compared cell by cell."""
    cell_id = cells.index[cells["split"] == "validation"].to_numpy()
    return pd.DataFrame({"cell_id": cell_id, "reconstruction": elbo.reconstruction, "kl": elbo.kl})


def final_measures(
    model: VAE, elbo: CellElbo, inputs: ModelInputs, plan: TrainingPlan, device
) -> dict:
    """Rate, distortion and use of the latent space on validation cells, for summary.json."""
    validation = inputs.split("validation")
    at = embed(model, validation, device)
    n_axes = signal_axes(inputs.split("train"))
    collapse = diagnose(model, validation, device, plan.beta, n_axes)
    return {
        "elbo": elbo.mean,
        "elbo_se": elbo.se,
        "rate": float(elbo.kl.mean()),
        "distortion": -float(elbo.reconstruction.mean()),
        "active_units": active_units(at.mean),
        "mutual_information": mutual_information(at, MIXTURE_DRAWS),
        "signal_axes": n_axes,
        "collapse": asdict(collapse) if collapse else None,
    }


def write_model(model: VAE, inputs: ModelInputs, design: Design, output) -> None:
    """model.safetensors and model.json, each put in place at once."""
    weights, description = Path(output.weights), Path(output.description)
    write_atomically(
        weights,
        lambda w: write_atomically(
            description,
            lambda d: save_model(model, w, d, inputs.genes, design=design.as_json()),
        ),
    )


if __name__ == "__main__":
    with job(snakemake) as log:
        params = snakemake.params
        torch.set_num_threads(snakemake.threads)
        device = device_or_error(params.device)
        settings = dict(params.settings)
        if snakemake.input.get("choice"):
            settings["likelihood"] = read_json(snakemake.input.choice)["chosen"]
        inputs = read_model_inputs(
            snakemake.input.counts,
            snakemake.input.library_size,
            counts_memory(snakemake),
            params.fold,
            snakemake.input.get("held") or "",
        )
        check_latent(settings["n_latent"], len(inputs.genes))
        design = make_design(inputs.cells, settings)
        inputs = inputs.with_design(design)
        plan = training_plan(settings, params.seed)
        model = build_model(inputs, settings, design, params.seed)
        training = inputs.split("train")
        data = training, inputs.validation(settings["validation_cells"])
        progress = run_training(model, *data, plan, device, params, log, "train_vae")
        elbo = cell_elbo(model, inputs.split("validation"), device, EVIDENCE_DRAWS)
        measures = final_measures(model, elbo, inputs, plan, device)
        collapse = Diagnosis(**measures["collapse"]) if measures["collapse"] else None
        batches = ShuffledBatches(training, plan.batch_size, plan.seed)
        write_parquet(pd.DataFrame(progress.history), snakemake.output.history)
        write_parquet(kl_table(progress), snakemake.output.kl)
        write_parquet(validation_table(elbo, inputs.cells), snakemake.output.validation)
        write_json(
            {
                "architecture": asdict(model.architecture),
                "beta": plan.beta,
                "n_train": len(training),
                "n_validation": len(inputs.split("validation")),
                "n_genes": len(inputs.genes),
                "n_latent": model.architecture.n_latent,
                "steps": progress.step,
                "steps_per_epoch": batches.steps_per_epoch,
                "warmup_ends_at_step": 0 if plan.is_final(0) else plan.kl_warmup_steps,
                "best_step": progress.best_step,
                "stopped_by": progress.stopped_by,
                **measures,
                "seed": params.seed,
                "device": device.type,
                "threads": snakemake.threads,
                "precision": plan.precision if has_step(model) else "float32",
                "warnings": training_warnings(
                    progress, plan, model.architecture, measures["active_units"], collapse
                ),
            },
            snakemake.output.summary,
        )
        write_model(model, inputs, design, snakemake.output)
        remove_checkpoint(Path(params.checkpoint))
