"""The bulk example: known outliers in a simulated cohort, found through the pipeline's rules."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy import sparse, stats

from cohort import check_cohort
from import_counts import import_counts
from job import read_json
from make_bulk_example import (
    CONTROLS,
    DEGRADED,
    GENES,
    PATIENTS,
    make_cohort,
    outlier_counts,
    simulate_cohort,
    size_factors,
)
from model_jobs import GENES_TESTED, SETTINGS, embed, train
from run_script import Named, run_script
from simulated_counts import Simulated, write_run

EXAMPLE = Path(__file__).parent.parent / "workflow" / "example"


@pytest.fixture(scope="module")
def cohort():
    return make_cohort(seed=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    output = {"controls": "controls.tsv", "patients": "patients.tsv", "outliers": "outliers.tsv"}
    return run_script("make_bulk_example", folder, {}, output, {"seed": 1})


def test_the_files_are_the_counts_and_their_table_imports_them(cohort, files, tmp_path):
    counts, outliers = cohort
    table = pd.read_csv(EXAMPLE / "bulk.tsv", sep="\t", dtype=str).fillna("")
    assert table["role"].tolist() == ["reference", "query"]
    for row in table.to_dict("records"):
        written = str(tmp_path / "imported.h5ad")
        summary = import_counts(str(files[row["sample"]]), row, "Gene Expression", written)
        adata = ad.read_h5ad(written)
        np.testing.assert_array_equal(adata.X.toarray(), counts.loc[adata.obs_names])
        assert list(adata.var_names) == list(counts.columns)
        assert summary["warnings"] == []
    assert len(pd.read_csv(files["outliers"], sep="\t")) == len(outliers)
    assert check_cohort(CONTROLS, PATIENTS) == []


def test_only_patients_have_outliers_and_they_stand_where_they_should(cohort):
    counts, outliers = cohort
    assert outliers["sample"].str.startswith("patient").all()
    n = outliers["sample"].value_counts()
    assert (n.drop(DEGRADED) == 3).all() and n[DEGRADED] == 60 and len(n) == PATIENTS
    level = np.log2((counts + 1).div(size_factors(counts.to_numpy()), axis=0))
    normal = level[:CONTROLS]
    place = (level - normal.mean()) / normal.std()
    found = np.array(
        [place.loc[s, g] for s, g in zip(outliers["sample"], outliers["gene"], strict=True)]
    )
    assert (np.sign(found) == np.sign(outliers["z"])).all()
    assert np.median(np.abs(found) / outliers["z"].abs()) == pytest.approx(1.0, abs=0.15)


def test_a_shift_of_z_standard_deviations_is_one():
    counts = simulate_cohort(60, 400, seed=3).counts
    factors = size_factors(counts)[:, None]
    level = np.log2((counts + 1) / factors)
    moved = np.log2(outlier_counts(counts, np.full(counts.shape, 2.0)) / factors)
    expected = np.broadcast_to(level.mean(0) + 2 * level.std(0, ddof=1), moved.shape)
    well = counts.mean(0) > 100
    np.testing.assert_allclose(moved[:, well], expected[:, well], atol=0.05)


def test_simulated_counts_are_confounded_negative_binomials():
    cohort = simulate_cohort(200, 500, seed=2)
    known = stats.nbinom(cohort.theta, cohort.theta / (cohort.theta + cohort.mu))
    p = known.sf(cohort.counts) + known.pmf(cohort.counts) * np.random.default_rng(0).random(
        cohort.counts.shape
    )
    assert stats.kstest(p.ravel(), "uniform").pvalue > 1e-3
    level = np.log(cohort.mu)
    level = level - level.mean(0)
    size = np.linalg.svd(level, compute_uv=False)
    assert size[8] > 0.02 * size[0] and size[9] < 1e-9 * size[0], "eight confounders and the depth"


def test_the_seed_decides_and_the_bytes_stay(cohort):
    again, outliers = make_cohort(seed=1)
    pd.testing.assert_frame_equal(again, cohort[0])
    pd.testing.assert_frame_equal(outliers, cohort[1])
    assert (make_cohort(seed=2)[0].to_numpy() != cohort[0].to_numpy()).any()


@pytest.fixture(scope="module")
def scored(cohort, tmp_path_factory):
    """Training, embedding and score_genes with the settings of the bulk example."""
    torch.set_num_threads(1)
    counts, _ = cohort
    config = yaml.safe_load((EXAMPLE / "bulk.yaml").read_text(encoding="utf-8"))
    folder = tmp_path_factory.mktemp("bulk")
    split = np.full(CONTROLS + PATIENTS, "train", dtype=object)
    split[:CONTROLS:4] = np.resize(["validation", "calibration", "calibration"], 15)
    split[CONTROLS:] = "query"
    size = size_factors(counts.to_numpy()) * np.median(counts.sum(axis=1))
    X = sparse.csr_matrix(counts.to_numpy().astype(np.int32))
    paths = write_run(folder, Simulated(X, size, None, None, 0.0), split, np.full(GENES, True))
    changed = config["train"] | {"max_steps": 30, "checkpoint_seconds": 1e9}
    model = train(folder / "train", paths, **(SETTINGS | {"batch_size": 128} | changed))
    latent = embed(folder / "embed", paths, model)
    verdict = pd.DataFrame(
        {
            "cell_id": [f"cell{i}" for i in range(CONTROLS, CONTROLS + PATIENTS)],
            **{"sample": "S1", "split": "query", "is_anomaly": False},
        }
    )
    verdict.to_parquet(folder / "cells.parquet")
    given = Named(
        paths
        | {
            "weights": [str(model["weights"])],
            "descriptions": [str(model["description"])],
            "latents": [str(latent)],
            "cells": str(folder / "cells.parquet"),
        }
    )
    params = {
        **{"settings": {"alpha": 0.05, **config["genes"]}, "observations": "samples"},
        **{"folds": [None], "seed": 1},
    }
    return run_script("score_genes", folder, given, GENES_TESTED, params)


def in_words(table: pd.DataFrame, cohort) -> pd.DataFrame:
    """The run's names of samples and genes as those of the example."""
    samples = cohort[0].index.to_numpy()[table["cell_id"].str.removeprefix("cell").astype(int)]
    return table.assign(sample=samples)


def test_the_planted_outliers_are_found_and_little_else(scored, cohort):
    counts, outliers = cohort
    hits = in_words(pd.read_parquet(scored["genes"]), cohort)
    genes = counts.columns.to_numpy()[hits["gene"].str.removeprefix("G").astype(int)]
    found = set(zip(hits["sample"], genes, strict=True))
    planted = set(zip(outliers["sample"], outliers["gene"], strict=True))
    in_patients = {pair for pair in planted if pair[0] != DEGRADED}
    assert len(found & in_patients) / len(in_patients) > 0.6
    assert len(found - planted) / len(found) < 0.1


def test_the_degraded_sample_is_the_aberrant_one(scored, cohort):
    table = in_words(pd.read_csv(scored["outliers"], sep="\t"), cohort).set_index("sample")
    assert table["n_outlier_genes"].idxmax() == DEGRADED
    assert table.loc[DEGRADED, "is_aberrant"]
    assert table["is_aberrant"].sum() <= 3
    summary = read_json(scored["summary"])
    assert any("aberrant" in line for line in summary["warnings"])


def test_gene_p_values_of_normal_samples_are_as_they_should_be(scored):
    ratio = read_json(scored["summary"])["null_ratio"]
    assert ratio["0.01"] == pytest.approx(1.0, abs=0.4)
    full = pd.read_parquet(scored["full"])
    assert len(full) == PATIENTS * GENES
    assert np.median(full["observed"] / full["expected"]) == pytest.approx(1.0, abs=0.03)


def test_the_example_s_config_is_sound_and_leaves_out_what_is_of_cells(tmp_path):
    root = EXAMPLE.parent.parent
    command = [sys.executable, "-m", "snakemake", "-n", "--nocolor", "--snakefile"]
    command += [root / "Snakefile", "--configfile", EXAMPLE / "bulk.yaml", "--cores", "1"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "rule make_bulk_example:" in found.stdout
    assert "rule score_genes:" in found.stdout
    assert "rule score_doublets:" not in found.stdout
    assert "seed1-group" not in found.stdout
