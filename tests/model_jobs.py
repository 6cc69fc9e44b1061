"""The model's rules one after the other on small data, each as Snakemake would call it."""

from pathlib import Path

import anndata as ad

from run_script import run_script
from simulated_counts import PRUNE, TRAIN

# What config.yaml's section ``train`` holds, small and quick.
SETTINGS = TRAIN | {"continuous_covariates": []}
REFINE = {"steps": 10, "learning_rate": 0.05, "for_scores": False}
EVIDENCE = {"samples": 20, "cells": 500}
ANOMALY = {"alpha": 0.1, "gene_alpha": 0.05, "program_genes": 10}
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
    "cells_tsv": "cells.tsv",
    "cells": "cells.parquet",
    "genes_tsv": "genes.tsv",
    "genes": "genes.parquet",
    "channels": "channels.tsv",
    "summary": "summary.json",
}


def _in(folder: Path, seed: int) -> dict:
    """The parameters that training and pruning share."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = str(folder / "checkpoint.safetensors")
    return {"seed": seed, "device": "cpu", "checkpoint": checkpoint, "code": "a hash"}


def train(folder: Path, paths: dict, seed: int = 1, choice: str = "", **changed) -> dict:
    """train_vae with some settings changed; ``choice``: the summary of choose_likelihood."""
    params = _in(folder, seed) | {"settings": SETTINGS | changed}
    return run_script("train_vae", folder, paths | {"choice": choice}, TRAINED, params)


def with_model(paths: dict, model: dict) -> dict:
    """Input of a rule that reads a model besides counts and library sizes."""
    return paths | {name: str(model[name]) for name in MODEL}


def prune(folder: Path, paths: dict, trained: dict, seed: int = 1, **changed) -> dict:
    """prune_latent of a trained model; ``changed``: of the settings it was trained with."""
    params = _in(folder, seed) | {"settings": PRUNE, "training": SETTINGS | changed}
    return run_script("prune_latent", folder, with_model(paths, trained), PRUNED, params)


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
    folder.mkdir(parents=True, exist_ok=True)
    given = with_model(paths, model) | {"latent": str(latent)}
    params = {"settings": ANOMALY | changed, "seed": 1, "device": "cpu"}
    return run_script("detect_anomalies", folder, given, DETECTED, params)


def with_obs(paths: dict, folder: Path, **columns) -> dict:
    """The same run with more columns in obs; values a cell, or one for all."""
    adata = ad.read_h5ad(paths["counts"])
    adata.obs = adata.obs.assign(**columns)
    folder.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(folder / "counts.h5ad")
    return paths | {"counts": str(folder / "counts.h5ad")}
