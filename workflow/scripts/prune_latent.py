"""Judge the latent dimensions on held-out cells, cut the model, fine-tune it, judge again."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from design import Design
from job import job, read_json, write_json, write_parquet, write_tsv
from model_inputs import device_or_error, read_fit
from omics_vae.checkpoint import remove_checkpoint
from omics_vae.inference import CellElbo, cell_elbo
from omics_vae.pruning import EVIDENCE_DRAWS, Evidence, cut_model, gather_evidence
from stored_counts import counts_memory
from train_vae import run_training, training_plan, write_model


def evidence_table(evidence: Evidence, kept: np.ndarray, settings: dict) -> pd.DataFrame:
    """One row a dimension: its measures, the verdict, and the verdict's reason in words."""
    min_kl, min_ablation = settings["min_kl"], settings["min_ablation"]
    reasons = []
    for kl, ablation, keep in zip(evidence.kl, evidence.ablation, kept, strict=True):
        against = []
        if kl <= min_kl:
            against.append(f"KL {kl:.3f} <= {min_kl:g}")
        if ablation <= min_ablation:
            against.append(f"ELBO lost without it {ablation:.3f} <= {min_ablation:g}")
        if keep and against:
            against.append("kept all the same: a model needs one dimension")
        reasons.append("; ".join(against) or "informative and worth its KL")
    return pd.DataFrame(
        {
            "dimension": np.arange(len(kept)),
            "kl": evidence.kl,
            "kl_se": evidence.kl_se,
            "aggregated_kl": evidence.aggregated_kl,
            "mean_variance": evidence.mean_variance,
            "ablation": evidence.ablation,
            "ablation_se": evidence.ablation_se,
            "kept": kept,
            "sure": evidence.sure(min_kl, min_ablation),
            "reason": reasons,
        }
    )


def elbo_row(stage: str, held_out: CellElbo) -> dict:
    """A row of elbo.tsv, nats a cell."""
    return {
        "stage": stage,
        "n_latent": held_out.kl_dimensions.shape[1],
        "elbo": held_out.mean,
        "elbo_se": held_out.se,
        "reconstruction": float(held_out.reconstruction.mean()),
        "kl": float(held_out.kl.mean()),
    }


def range_of_dimensions(kept: np.ndarray, sure: np.ndarray) -> tuple[int, int]:
    """How few and how many dimensions two standard errors would leave."""
    return max(1, int((kept & sure).sum())), max(1, int((kept | ~sure).sum()))


def pruning_warnings(
    kept: np.ndarray, sure: np.ndarray, elbo: pd.DataFrame, again: np.ndarray
) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    found = []
    low, high = range_of_dimensions(kept, sure)
    if high - low > max(2, kept.sum() / 2):
        found.append(
            f"How many latent dimensions the data carry is uncertain: {kept.sum()} were kept, two "
            f"standard errors allow {low} to {high}; bring more reference cells, or raise "
            "preprocess.split.validation."
        )
    if kept.sum() == 1:
        found.append(
            "Only one latent dimension carries information: the reference hardly varies or the "
            "posterior collapsed; see the training curves, lower train.weight_decay."
        )
    if kept.all():
        found.append("No latent dimension could be cut; raise train.n_latent to be sure of all.")
    trained, tuned = elbo["elbo"].iloc[0], elbo["elbo"].iloc[-1]
    if tuned < trained - 2 * elbo["elbo_se"].iloc[0]:
        found.append(
            f"Cutting cost {trained - tuned:.2f} nats a cell of held-out ELBO that fine-tuning did "
            "not win back; lower prune.min_kl and prune.min_ablation."
        )
    if not again.all():
        found.append(
            f"After fine-tuning {int((~again).sum())} of {len(again)} kept dimensions would fail "
            "the same test; they are kept."
        )
    return found


if __name__ == "__main__":
    with job(snakemake) as log:
        params, settings = snakemake.params, snakemake.params.settings
        torch.set_num_threads(snakemake.threads)
        device = device_or_error(params.device)
        model, inputs = read_fit(snakemake.input, counts_memory(snakemake), params.fold)
        design = Design(**read_json(snakemake.input.description)["design"])
        validation = inputs.validation(params.training["validation_cells"])
        evidence = gather_evidence(model, validation, device)
        thresholds = settings["min_kl"], settings["min_ablation"]
        kept, sure = evidence.keep(*thresholds), evidence.sure(*thresholds)
        low, high = range_of_dimensions(kept, sure)
        log.info(
            "prune_latent: %d of %d dimensions stay (%d to %d)", kept.sum(), len(kept), low, high
        )
        rows = [elbo_row("trained", cell_elbo(model, validation, device, EVIDENCE_DRAWS))]
        model = cut_model(model, kept, evidence.centre)
        rows.append(elbo_row("cut", cell_elbo(model, validation, device, EVIDENCE_DRAWS)))
        training = {
            **params.training,
            "kl_warmup": "constant",
            "max_steps": settings["fine_tune_steps"],
            "learning_rate": settings["fine_tune_learning_rate"],
        }
        plan = training_plan(training, params.seed)
        data = inputs.split("train"), validation
        progress = run_training(model, *data, plan, device, params, log, "prune_latent")
        rows.append(elbo_row("fine-tuned", cell_elbo(model, validation, device, EVIDENCE_DRAWS)))
        again = gather_evidence(model, validation, device).keep(*thresholds)
        table, elbo = evidence_table(evidence, kept, settings), pd.DataFrame(rows)
        write_parquet(table, snakemake.output.evidence)
        write_tsv(table, snakemake.output.evidence_tsv)
        write_tsv(elbo, snakemake.output.elbo)
        write_parquet(pd.DataFrame(progress.history), snakemake.output.history)
        write_json(
            {
                "n_latent": len(kept),
                "n_kept": int(kept.sum()),
                "n_kept_range": [low, high],
                "n_would_stay_again": int(again.sum()),
                "min_kl": settings["min_kl"],
                "min_ablation": settings["min_ablation"],
                "fine_tuned_steps": progress.step,
                "stopped_by": progress.stopped_by,
                "warnings": pruning_warnings(kept, sure, elbo, again),
            },
            snakemake.output.summary,
        )
        write_model(model, inputs, design, snakemake.output)
        remove_checkpoint(Path(params.checkpoint))
