"""The rule detect_anomalies: flags, genes, and what it says about itself."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control

from detect_anomalies import (
    GENE_COLUMNS,
    calibration_warnings,
    channel_table,
    false_positives_by_depth,
    gene_hits,
    judge_cells,
    spearman,
    summarise,
)
from evidence_channels import CHANNELS, Cells, raw_channels, standardise
from job import InputError
from model_inputs import read_model_inputs
from omics_vae.inference import dispersion, embed, expected_counts
from omics_vae.likelihoods import nb_two_sided_p
from omics_vae.model import save_model
from omics_vae.training import train
from run_script import run_script
from simulated_counts import CPU, SPLITS, TRAIN, small_run
from train_vae import build_model, training_plan

OUTPUT = {
    "cells_tsv": "cells.tsv",
    "cells": "cells.parquet",
    "genes_tsv": "genes.tsv",
    "genes": "genes.parquet",
    "channels": "channels.tsv",
    "summary": "summary.json",
}
SETTINGS = {"alpha": 0.1, "gene_alpha": 0.05, "program_genes": 10}
SPIKED = [f"cell{i}" for i in range(408, 420)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A trained model and cells of which the last 12 have a gene too much, twice."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("inputs")
    paths = small_run(folder, spike=True)
    data = read_model_inputs(**paths)
    model = build_model(data, TRAIN, seed=1)
    plan = training_plan(TRAIN | {"max_steps": 200, "checkpoint_seconds": 1e9}, 1)
    train(model, data.split("train"), data.split("validation"), plan, CPU, folder / "c")
    names = {"weights": "m.safetensors", "description": "m.json", "latent": "latent.parquet"}
    paths |= {name: str(folder / file) for name, file in names.items()}
    save_model(model, paths["weights"], paths["description"], data.genes)
    mean, _ = embed(model, data.data, CPU)
    latent = pd.DataFrame(mean, columns=[f"mean_{j}" for j in range(4)])
    latent.insert(0, "cell_id", data.cells.index)
    latent.to_parquet(paths["latent"])
    return paths, model, data.genes


@pytest.fixture(scope="module")
def cells(inputs):
    paths, _, genes = inputs
    return Cells(paths["counts"], paths["library_size"], paths["latent"], genes)


def run(folder, paths, **settings):
    params = {"settings": SETTINGS | settings, "seed": 1, "device": "cpu"}
    return run_script("detect_anomalies", folder, paths, OUTPUT, params)


@pytest.fixture(scope="module")
def detected(tmp_path_factory, inputs):
    return run(tmp_path_factory.mktemp("anomaly"), inputs[0])


def test_spiked_cells_are_flagged_and_their_genes_named(detected):
    table = pd.read_csv(detected["cells_tsv"], sep="\t", dtype={"is_anomaly": bool})
    assert list(table.columns) == ["cell_id", "sample", "score", "p_value", "q_value", "is_anomaly"]
    assert len(table) == SPLITS["query"]
    flagged = set(table.loc[table["is_anomaly"], "cell_id"])
    assert flagged >= set(SPIKED)
    assert len(flagged) <= 15
    np.testing.assert_allclose(table["q_value"], false_discovery_control(table["p_value"]))
    np.testing.assert_array_equal(table["is_anomaly"], table["q_value"] <= 0.1)
    genes = pd.read_parquet(detected["genes"])
    assert list(genes.columns) == GENE_COLUMNS
    for cell in SPIKED:
        hits = genes[genes["cell_id"] == cell].set_index("gene")
        assert hits.loc["G3", "null"] == "model"
        assert hits.loc["G55", "null"] == "pooled"
        assert (hits.loc[["G3", "G55"], "direction"] == "up").all()
        assert (hits.loc[["G3", "G55"], "log2_fold_change"] > 1).all()
    assert set(genes["cell_id"]) <= flagged
    assert (genes["q_value"] <= 0.05).all()
    assert (genes["q_value"] >= genes["p_value"]).all()


def test_calibration_cells_are_ranked_and_not_judged(detected):
    table = pd.read_parquet(detected["cells"])
    assert table["split"].value_counts().to_dict() == {"calibration": 100, "query": 60}
    normal = table[table["split"] == "calibration"]
    assert normal["q_value"].isna().all()
    assert not normal["is_anomaly"].any()
    assert (normal["p_value"] <= 0.05).mean() <= 0.05
    assert np.isfinite(table["elbo"]).all()
    summary = json.loads(detected["summary"].read_text())
    assert (summary["n_calibration"], summary["n_query"]) == (100, 60)
    assert summary["n_anomalies"] == table["is_anomaly"].sum()
    assert summary["smallest_p"] == pytest.approx(1 / 101)
    assert summary["needed_together"] == 6  # 60 / (0.1 * 101) = 5.94
    assert len(summary["fpr_by_depth_fifth"]) == 5
    assert set(summary["channels"]) <= set(CHANNELS)


def test_the_same_inputs_give_the_same_bytes(detected, inputs, tmp_path):
    again = run(tmp_path, inputs[0])
    for name, path in detected.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_a_program_of_one_gene_is_the_single_gene(detected, inputs, tmp_path):
    one = pd.read_parquet(run(tmp_path, inputs[0], program_genes=1)["cells"])
    np.testing.assert_array_equal(one["z_program"], one["z_single_gene"])
    ten = pd.read_parquet(detected["cells"])
    assert not np.allclose(ten["z_program"], ten["z_single_gene"], atol=0.1)


def test_a_run_that_flags_nobody_still_writes_its_tables(inputs, tmp_path):
    written = run(tmp_path, inputs[0], alpha=1e-6)
    assert not pd.read_parquet(written["cells"])["is_anomaly"].any()
    genes = pd.read_parquet(written["genes"])
    assert list(genes.columns) == GENE_COLUMNS
    assert len(genes) == 0
    assert written["genes_tsv"].read_text() == "\t".join(GENE_COLUMNS) + "\n"
    warnings = json.loads(written["summary"].read_text())["warnings"]
    assert any("too few to flag any of 60" in warning for warning in warnings)


def test_files_of_another_run_are_one_line_for_the_user(inputs, tmp_path):
    paths, _, genes = inputs
    with pytest.raises(InputError, match="not of one run"):
        Cells(paths["counts"], paths["library_size"], paths["latent"], [*genes, "unheard of"])
    pd.read_parquet(paths["latent"]).iloc[::-1].to_parquet(tmp_path / "l.parquet")
    with pytest.raises(InputError, match="not of one run"):
        Cells(paths["counts"], paths["library_size"], str(tmp_path / "l.parquet"), genes)


def test_gene_hits_are_benjamini_yekutieli_within_the_cell(inputs, cells):
    _, model, _ = inputs
    spiked = int(cells.obs.index.get_loc(SPIKED[0]))
    everything = gene_hits(model, cells, np.array([spiked]), 1.0, CPU).set_index("gene")
    assert len(everything) == 60, "at level 1 every gene is listed"
    x = cells.counts[spiked].toarray().ravel()
    assert (everything.loc[list(cells.genes), "observed"] == x).all()
    theta = np.ones(60)
    theta[:40] = dispersion(model)
    expected = everything.loc[list(cells.genes), "expected"].to_numpy()
    p = nb_two_sided_p(x, expected, theta)
    np.testing.assert_allclose(everything.loc[list(cells.genes), "p_value"], p, rtol=1e-8)
    q = false_discovery_control(p, method="by")
    np.testing.assert_allclose(everything.loc[list(cells.genes), "q_value"], q, rtol=1e-8)
    ((_, mu),) = expected_counts(model, cells.latent[[spiked]], np.log(cells.size[[spiked]]), CPU)
    np.testing.assert_allclose(expected[:40], mu[0], rtol=1e-6)
    # Genes outside the model: the share of the reference's counts, at this cell's depth.
    seen = cells.of("train", "validation")
    rate = (cells.counts[seen].toarray().sum(0) + 0.5) / cells.size[seen].sum()
    np.testing.assert_allclose(expected[40:], (rate * cells.size[spiked])[40:])
    assert set(everything.index[everything["null"] == "pooled"]) == {f"G{g}" for g in range(40, 60)}


def test_a_gene_that_is_missing_is_down(inputs, cells):
    _, model, _ = inputs
    normal = int(cells.of("calibration")[0])
    strongest = int(np.asarray(cells.counts[cells.of("train")].sum(0)).argmax())
    changed = object.__new__(Cells)
    changed.__dict__.update(cells.__dict__)
    counts = cells.counts.tolil()
    counts[normal, strongest] = 0
    changed.counts = counts.tocsr()
    hits = gene_hits(model, changed, np.array([normal]), 1.0, CPU).set_index("gene")
    hit = hits.loc[f"G{strongest}"]
    assert hit["direction"] == "down"
    assert hit["log2_fold_change"] < -2
    assert hit["observed"] == 0


def test_the_reference_alone_decides_what_is_normal(inputs, cells):
    """Query cells change neither a calibration cell's scores nor their standard.

    One channel is made of what all held-out cells share, query included, and so is left out here.
    """
    _, model, _ = inputs
    held_out = cells.of("validation", "calibration", "query")
    normal = cells.split[held_out] != "query"
    depth = np.log(cells.size[held_out])
    raw = raw_channels(model, cells, held_out, SETTINGS, 1, CPU)
    alone = raw_channels(model, cells, held_out[normal], SETTINGS, 1, CPU)
    assert set(raw) == set(alone)
    del raw["shared_program"], alone["shared_program"]
    with_query = standardise(raw, depth, normal)
    without = standardise(alone, depth[normal], np.full(normal.sum(), True))
    for name, score in without.items():
        np.testing.assert_allclose(with_query[name][normal], score, rtol=1e-6, atol=1e-6)
        assert score.mean() == pytest.approx(0.0, abs=0.1)
        assert score.std() == pytest.approx(1.0, abs=0.35)


def test_the_shared_program_does_not_know_who_is_query(inputs, cells):
    """Calibration and query cells that trade places keep the axes: the ranks stay exchangeable."""
    _, model, _ = inputs
    held_out = cells.of("validation", "calibration", "query")
    shuffled = np.random.default_rng(0).permutation(held_out)
    scores = {}
    for name, order in (("held_out", held_out), ("shuffled", shuffled)):
        score = raw_channels(model, cells, order, SETTINGS, 1, CPU)["shared_program"]
        scores[name] = pd.Series(score, index=order).sort_index()
    np.testing.assert_allclose(scores["held_out"], scores["shuffled"], rtol=1e-4)


def test_false_positives_are_counted_in_fifths_of_the_depth():
    depth = np.random.default_rng(0).permutation(100).astype(float)
    p = np.where(depth < 20, 0.01, 0.5)
    p[depth == 99] = 0.05
    assert false_positives_by_depth(p, depth) == [1.0, 0.0, 0.0, 0.0, 0.05]


def judged(channels, query, depth):
    table = judge_cells(channels, query, depth, 0.1)
    return table.assign(split=np.where(query, "query", "calibration"), library_size=np.exp(depth))


def test_a_flagged_cell_is_led_by_the_channel_farthest_from_normal():
    """Ranks tie where two channels pass all calibration cells; distances do not."""
    rng = np.random.default_rng(0)
    query, depth = np.arange(300) >= 200, rng.normal(8, 0.5, 300)
    scores = {"program": rng.standard_normal(300), "unseen_genes": rng.standard_normal(300)}
    scores["program"][240:] += 8.0
    scores["unseen_genes"][270:] += 20.0
    table = judged(scores, query, depth)
    assert table["is_anomaly"][240:].all()
    assert set(table["leading_channel"][240:270]) == {"program"}
    assert set(table["leading_channel"][270:]) == {"unseen_genes"}
    assert set(table.loc[~table["is_anomaly"], "leading_channel"]) == {""}
    counts = channel_table(table).set_index("channel")["n_leading"]
    assert counts.sum() == table["is_anomaly"].sum()
    assert counts["unseen_genes"] == 30


def test_the_channel_table_sees_depth_in_calibration_and_unflagged_query_cells():
    rng = np.random.default_rng(0)
    query, depth = np.arange(200) >= 100, rng.normal(8, 0.5, 200)
    scores = {"program": rng.standard_normal(200), "profile": depth.copy()}
    table = channel_table(judged(scores, query, depth)).set_index("channel")
    assert table.loc["profile", "spearman_depth"] == pytest.approx(1.0)
    assert table.loc["profile", "spearman_depth_query"] == pytest.approx(1.0)
    assert abs(table.loc["program", "spearman_depth"]) < 0.3
    assert table["what"].to_dict() == {name: CHANNELS[name][1] for name in table.index}


def test_flagged_cells_do_not_count_in_the_depth_of_the_query():
    """Anomalies that are deep are no fault of the score; they hide the one of the others."""
    rng = np.random.default_rng(0)
    query, depth = np.arange(400) >= 200, rng.normal(8, 0.5, 400)
    score = rng.standard_normal(400)
    score[320:] += 9.0
    depth[320:] += 3.0
    table = judged({"program": score}, query, depth)
    summary = summarise(table, SETTINGS)
    assert summary["n_anomalies"] >= 80
    assert abs(summary["spearman_depth_query"]) < 0.25
    assert spearman(table["score"][query], table["library_size"][query]) > 0.5


def test_a_rank_correlation_with_something_constant_is_zero():
    assert spearman(np.ones(5), np.arange(5)) == 0.0
    assert spearman(np.arange(5), np.arange(5) ** 3) == pytest.approx(1.0)


HEALTHY = {
    "alpha": 0.1,
    "n_calibration": 1000,
    "n_query": 500,
    "needed_together": 5,
    "channels": ["program", "unseen_genes"],
    "spearman_depth": 0.05,
    "spearman_depth_query": -0.05,
    "bands": {"spearman_depth": 0.1, "fpr": [0.005, 0.11], "needed_together": 25},
    "fpr_by_depth_fifth": [0.05, 0.04, 0.06, 0.05, 0.05],
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"needed_together": 50}, ["unless at least 50 of 500 query cells are odder"]),
        ({"needed_together": 501}, ["too few to flag any of 500 query cells"]),
        ({"channels": ["program"]}, ["No gene is rare enough in the reference"]),
        ({"spearman_depth_query": 0.2}, ["The score of unflagged query cells follows"]),
        ({"spearman_depth": 0.3}, ["follows sequencing depth (Spearman 0.30)"]),
        ({"spearman_depth": -0.3}, ["follows sequencing depth (Spearman -0.30)"]),
        ({"fpr_by_depth_fifth": [0.05, 0.05, 0.05, 0.05, 0.2]}, ["depth fifth 5 of 5 20 %"]),
        ({"fpr_by_depth_fifth": [0.0, 0.05, 0.05, 0.05, 0.05]}, ["depth fifth 1 of 5 0 %"]),
    ],
)
def test_warnings_appear_when_they_should_and_not_else(change, expected):
    found = calibration_warnings(HEALTHY | change)
    assert len(found) == len(expected)
    for warning, words in zip(found, expected, strict=True):
        assert words in warning


def test_the_smallest_group_that_can_be_flagged_is_the_one_the_warning_names():
    n, m, alpha = 100, 500, 0.1
    noise = np.random.default_rng(0).standard_normal((2, n + m))
    table = judged({"program": noise[0]}, np.arange(n + m) >= n, noise[1])
    assert summarise(table, SETTINGS)["needed_together"] == 50
    for together, expected in ((49, False), (50, True)):
        p = np.full(m, 1.0)
        p[:together] = 1 / (n + 1)
        assert (false_discovery_control(p)[:together] <= alpha).all() == expected


def test_healthy_depth_bands_seldom_warn():
    rng, warned = np.random.default_rng(0), 0
    noise = rng.standard_normal((2, 1500))
    table = judged({"program": noise[0]}, np.arange(1500) >= 1000, noise[1])
    healthy = HEALTHY | {"bands": summarise(table, SETTINGS)["bands"]}
    for _ in range(300):
        rates = [rng.binomial(200, 0.05) / 200 for _ in range(5)]
        warned += bool(calibration_warnings(healthy | {"fpr_by_depth_fifth": rates}))
    assert warned / 300 < 0.03
