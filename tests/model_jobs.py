"""The model's rules one after the other on small data, each as Snakemake would call it."""

from pathlib import Path

import anndata as ad
import numpy as np

from design import Design
from model_inputs import ModelInputs, latent_table, read_model_inputs
from omics_vae.inference import embed as posterior_of
from omics_vae.model import VAE, save_model
from run_script import run_script
from simulated_counts import CPU, PRUNE, TRAIN, write_counts

# What config.yaml's section ``train`` holds, small and quick.
SETTINGS = TRAIN | {"continuous_covariates": []}
REFINE = {"steps": 10, "learning_rate": 0.05, "for_scores": False}
EVIDENCE = {"samples": 20, "cells": 500}
ANOMALY = {
    **{"alpha": 0.1, "program_genes": 10, "contamination": None},
    **{"by_batch": "auto", "guarantee": "marginal", "conditional_delta": 0.1, "folds": 5},
}
MODEL = {"weights": "model.safetensors", "description": "model.json"}
TRAINED = MODEL | {
    "history": "history.parquet",
    "kl": "kl.parquet",
    "validation": "validation.parquet",
    "summary": "summary.json",
}
PRUNED = MODEL | {
    "evidence": "evidence.parquet",
    "evidence_tsv": "evidence.tsv",
    "elbo": "elbo.tsv",
    "history": "history.parquet",
    "summary": "summary.json",
}
MEASURED = {"cells": "cells.parquet", "groups": "groups.tsv", "summary": "summary.json"}
DETECTED = {
    "cells": "cells.parquet",
    "trimmed": "trimmed.tsv",
    "channels": "channels.tsv",
    "summary": "summary.json",
}
GENES_TESTED = {
    "genes_tsv": "genes.tsv",
    "genes": "genes.parquet",
    "full": "genes_all.parquet",
    "outliers": "outliers.tsv",
    "density": "density.tsv",
    "top": "top.parquet",
    "summary": "summary.json",
}


def _in(folder: Path, seed: int, fold: int | None) -> dict:
    """The parameters that training and pruning share."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **{"seed": seed, "fold": fold, "device": "cpu", "code": {"train_vae.py": "a hash"}},
        "checkpoint": str(folder / "checkpoint.safetensors"),
    }


def train(
    folder: Path,
    paths: dict,
    seed: int = 1,
    choice: str = "",
    fold: int | None = None,
    held: str | list = "",
    **changed,
) -> dict:
    """train_vae with some settings changed.

    ``choice``: the summary of choose_likelihood; ``fold`` and ``held`` (a table of cell_id): cells
    that the model is not to see.
    """
    params = _in(folder, seed, fold) | {"settings": SETTINGS | changed}
    given = of_model(paths) | {"choice": choice, "held": held}
    return run_script("train_vae", folder, given, TRAINED, params)


def of_model(paths: dict) -> dict:
    """Input of a rule that reads the model's genes alone."""
    return paths | {"counts": paths["model_counts"]}


def read_inputs(paths: dict, **held) -> ModelInputs:
    """What the model is given, with the counts read."""
    return read_model_inputs(paths["model_counts"], paths["library_size"], np.inf, **held)


def with_model(paths: dict, model: dict) -> dict:
    """Input of a rule that reads a model besides its counts and library sizes."""
    return of_model(paths) | {name: str(model[name]) for name in MODEL}


def prune(
    folder: Path,
    paths: dict,
    trained: dict,
    seed: int = 1,
    fold: int | None = None,
    held: str = "",
    **changed,
) -> dict:
    """prune_latent of a trained model; ``changed``: of the settings it was trained with."""
    params = _in(folder, seed, fold) | {"settings": PRUNE, "training": SETTINGS | changed}
    given = with_model(paths, trained) | {"held": held}
    return run_script("prune_latent", folder, given, PRUNED, params)


def embed(folder: Path, paths: dict, model: dict, **refine) -> Path:
    """latent.parquet by embed_cells."""
    folder.mkdir(parents=True, exist_ok=True)
    given = REFINE | refine
    params = {"refine": given if given["for_scores"] else None, "seed": 1, "device": "cpu"}
    output = {"latent": "latent.parquet"}
    return run_script("embed_cells", folder, with_model(paths, model), output, params)["latent"]


def measure(folder: Path, paths: dict, model: dict, **evidence) -> dict:
    """measure_evidence with some of config ``evidence`` changed."""
    folder.mkdir(parents=True, exist_ok=True)
    params = {"evidence": EVIDENCE | evidence, "refine": REFINE, "seed": 1, "device": "cpu"}
    return run_script("measure_evidence", folder, with_model(paths, model), MEASURED, params)


def detect(folder: Path, paths: dict, model: dict, latent: Path, **changed) -> dict:
    """detect_anomalies with some settings changed."""
    return detect_by(folder, paths, [(model, latent, None)], **changed)


def detect_by(folder: Path, paths: dict, fits: list[tuple], **changed) -> dict:
    """detect_anomalies by several models: (model, latent.parquet, its fold) each."""
    folder.mkdir(parents=True, exist_ok=True)
    given, folds = by_models(fits)
    params = {"settings": ANOMALY | changed, "folds": folds, "seed": 1, "observations": "cells"}
    return run_script("detect_anomalies", folder, paths | given, DETECTED, params)


def by_models(fits: list[tuple]) -> tuple[dict, list]:
    """Input and ``folds`` of a rule that reads several models: (model, latent, fold) each."""
    models, latents, folds = zip(*fits, strict=True)
    given = {
        "weights": [str(model["weights"]) for model in models],
        "descriptions": [str(model["description"]) for model in models],
        "latents": [str(latent) for latent in latents],
    }
    return given, list(folds)


def with_obs(paths: dict, folder: Path, **columns) -> dict:
    """The same run with more columns in obs; values a cell, or one for all."""
    adata = ad.read_h5ad(paths["counts"])
    adata.obs = adata.obs.assign(**columns)
    return paths | write_counts(folder, adata)


def write_fit(folder: Path, model: VAE, inputs: ModelInputs, design: Design) -> dict:
    """Weights, description and latent.parquet of a model as it is; their paths by name."""
    paths = {name: str(folder / name) for name in ("weights", "description", "latent")}
    as_json = design.as_json()
    save_model(model, paths["weights"], paths["description"], inputs.genes, design=as_json)
    posterior = posterior_of(model, inputs.data, CPU)
    latent_table(inputs.cells.index.to_numpy(), posterior).to_parquet(paths["latent"])
    return paths
