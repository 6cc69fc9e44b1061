"""The rule detect_anomalies: flags, genes, and what it says about itself."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control, nbinom

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
from job import InputError, read_json
from model_jobs import ANOMALY as SETTINGS
from model_jobs import detect, embed, measure, prune, train
from omics_vae.inference import cell_elbo, decoded
from omics_vae.model import load_model
from simulated_counts import CPU, SPLITS, small_run

SPIKED = [f"cell{i}" for i in range(408, 420)]
LONGER = {"max_steps": 200, "checkpoint_seconds": 1e9}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Cells of which the last 12 have a gene too much, twice."""
    torch.set_num_threads(1)
    return small_run(tmp_path_factory.mktemp("inputs"), spike=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, paths):
    return train(tmp_path_factory.mktemp("train"), paths, **LONGER)


@pytest.fixture(scope="module")
def latent(tmp_path_factory, paths, trained):
    return embed(tmp_path_factory.mktemp("embed"), paths, trained)


@pytest.fixture(scope="module")
def model(trained):
    return load_model(trained["weights"], trained["description"])[0]


@pytest.fixture(scope="module")
def cells(paths, trained, latent):
    return cells_of(paths, trained, latent)


def cells_of(paths, trained, latent) -> Cells:
    description = read_json(trained["description"])
    return Cells(paths["counts"], paths["library_size"], str(latent), description)


@pytest.fixture(scope="module")
def detected(tmp_path_factory, paths, trained, latent):
    return detect(tmp_path_factory.mktemp("anomaly"), paths, trained, latent)


@pytest.fixture
def run(paths, trained, latent, tmp_path):
    """Detection again, with some settings changed."""
    return lambda **changed: detect(tmp_path, paths, trained, latent, **changed)


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


def test_the_same_inputs_give_the_same_bytes(detected, run):
    again = run()
    for name, path in detected.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_a_program_of_one_gene_is_the_single_gene(detected, run):
    one = pd.read_parquet(run(program_genes=1)["cells"])
    np.testing.assert_array_equal(one["z_program"], one["z_single_gene"])
    ten = pd.read_parquet(detected["cells"])
    assert not np.allclose(ten["z_program"], ten["z_single_gene"], atol=0.1)


def test_a_run_that_flags_nobody_still_writes_its_tables(run):
    written = run(alpha=1e-6)
    assert not pd.read_parquet(written["cells"])["is_anomaly"].any()
    genes = pd.read_parquet(written["genes"])
    assert list(genes.columns) == GENE_COLUMNS
    assert len(genes) == 0
    assert written["genes_tsv"].read_text() == "\t".join(GENE_COLUMNS) + "\n"
    warnings = json.loads(written["summary"].read_text())["warnings"]
    assert any("too few to flag any of 60" in warning for warning in warnings)


def test_files_of_another_run_are_one_line_for_the_user(paths, trained, latent, tmp_path):
    description = read_json(trained["description"])
    description["genes"] = [*description["genes"], "unheard of"]
    with pytest.raises(InputError, match="not of one run"):
        Cells(paths["counts"], paths["library_size"], str(latent), description)
    pd.read_parquet(latent).iloc[::-1].to_parquet(tmp_path / "l.parquet")
    with pytest.raises(InputError, match="not of one run"):
        cells_of(paths, trained, tmp_path / "l.parquet")


def test_gene_hits_are_benjamini_yekutieli_within_the_cell(model, cells):
    spiked = np.array([cells.obs.index.get_loc(SPIKED[0])])
    everything = gene_hits(model, cells, spiked, 1.0, CPU).set_index("gene")
    assert len(everything) == 60, "at level 1 every gene is listed"
    everything = everything.loc[list(cells.genes)]
    x = cells.counts[spiked].toarray().ravel()
    assert (everything["observed"] == x).all()
    ((_, _, likelihood),) = decoded(
        model, cells.model_data(spiked), cells.posterior.take(spiked), CPU
    )
    expected = everything["expected"].to_numpy()
    np.testing.assert_allclose(expected[:40], likelihood.mean.numpy()[0], rtol=1e-6)
    theta = np.append(np.exp(likelihood.log_theta.numpy()), np.ones(20))
    q = theta / (theta + expected)
    two = 2 * np.minimum(nbinom.cdf(x, theta, q), nbinom.sf(x - 1, theta, q))
    np.testing.assert_allclose(everything["p_value"], np.minimum(two, 1), rtol=1e-6)
    q = false_discovery_control(everything["p_value"], method="by")
    np.testing.assert_allclose(everything["q_value"], q, rtol=1e-8)
    # Genes outside the model: the share of the reference's counts, at this cell's depth.
    seen = cells.of("train", "validation")
    rate = (cells.counts[seen].toarray().sum(0) + 0.5) / cells.size[seen].sum()
    np.testing.assert_allclose(expected[40:], (rate * cells.size[spiked])[40:])
    assert set(everything.index[everything["null"] == "pooled"]) == {f"G{g}" for g in range(40, 60)}


def test_a_gene_that_is_missing_is_down(model, cells):
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


def test_the_reference_alone_decides_what_is_normal(model, cells):
    """Query cells change neither a calibration cell's scores nor their standard.

    One channel is made of what all held-out cells share, query included, and so is left out here.
    """
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


def test_the_shared_program_does_not_know_who_is_query(model, cells):
    """Calibration and query cells that trade places keep the axes: the ranks stay exchangeable."""
    held_out = cells.of("validation", "calibration", "query")
    shuffled = np.random.default_rng(0).permutation(held_out)
    scores = {}
    for name, order in (("held_out", held_out), ("shuffled", shuffled)):
        score = raw_channels(model, cells, order, SETTINGS, 1, CPU)["shared_program"]
        scores[name] = pd.Series(score, index=order).sort_index()
    np.testing.assert_allclose(scores["held_out"], scores["shuffled"], rtol=1e-4)


# ---- other models and posteriors, by the same path


OTHERS = {
    "poisson": {"likelihood": "poisson"},
    "zinb": {"likelihood": "zinb"},
    "gaussian": {"likelihood": "gaussian"},
    "gaussian of a fixed variance": {"likelihood": "gaussian", "gaussian_variance": 0.3},
    "latent library size, refined": {"library_size": "latent"},
    "free decoder": {"decoder": "free"},
    "dispersion a cell": {"dispersion": "gene_cell"},
    "mixture prior": {"prior": "mixture"},
    "vamp prior": {"prior": "vamp", "normalization": "batch"},
    "linear": {"n_layers": 0},
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_whole_path_works_with(name, paths, tmp_path):
    """With so few calibration cells flags hang on one of them, so they are held to little here."""
    changed = LONGER | OTHERS[name]
    fit = train(tmp_path / "train", paths, **changed)
    cut = prune(tmp_path / "prune", paths, fit, **changed)
    refined = name.startswith("latent")
    place = embed(tmp_path / "embed", paths, cut, for_scores=refined)
    evidence = pd.read_parquet(measure(tmp_path / "evidence", paths, cut, cells=20)["cells"])
    assert np.isfinite(evidence.select_dtypes("number")).all(axis=None)
    assert evidence["log_p"].mean() > evidence["elbo"].mean()
    written = detect(tmp_path / "anomaly", paths, cut, place, alpha=0.6)
    table = pd.read_parquet(written["cells"]).set_index("cell_id")
    scores = table.filter(regex="^(score|p_value|elbo|z_|p_)")
    assert np.isfinite(scores.to_numpy(np.float64)).all()
    assert table.loc[SPIKED, "p_value"].median() <= 0.05
    assert table.loc[SPIKED, "is_anomaly"].all()
    usual = table.loc[table["split"] == "calibration", "z_single_gene"]
    assert (table.loc[SPIKED, "z_single_gene"] > usual.quantile(0.9)).all()
    genes = pd.read_parquet(written["genes"])
    for cell in SPIKED:
        hits = genes[genes["cell_id"] == cell].set_index("gene")
        assert (hits.loc[["G3", "G55"], "direction"] == "up").all()
    # What the model expects is in counts, whatever its likelihood is of.
    spiked = genes[(genes["gene"] == "G3") & genes["cell_id"].isin(SPIKED)]
    assert spiked["expected"].between(1, 500).all()
    assert (spiked["observed"] >= 1000).all()


def test_a_gaussian_expects_counts_at_the_depth_of_the_cell(paths, tmp_path):
    fit = train(tmp_path / "train", paths, likelihood="gaussian", **LONGER)
    place = embed(tmp_path / "embed", paths, fit)
    model, _ = load_model(fit["weights"], fit["description"])
    cells = cells_of(paths, fit, place)
    normal = cells.of("calibration")
    hits = gene_hits(model, cells, normal, 1.0, CPU)
    ours = hits[hits["null"] == "model"]
    by_cell = ours.groupby("cell_id")[["observed", "expected"]].sum()
    # The mean of a logarithm lies below the logarithm of a mean, so the sum is a little short.
    assert np.corrcoef(np.log(by_cell.T))[0, 1] > 0.9
    assert (by_cell["expected"] / by_cell["observed"]).median() == pytest.approx(0.85, abs=0.15)


def test_scores_stand_on_refined_posteriors_where_asked_for(paths, trained, latent, tmp_path):
    refined = embed(tmp_path / "embed", paths, trained, for_scores=True, steps=20)
    table = pd.read_parquet(detect(tmp_path / "a", paths, trained, refined)["cells"])
    plain = pd.read_parquet(detect(tmp_path / "b", paths, trained, latent)["cells"])
    assert (table["elbo"] - plain["elbo"]).mean() > 0.05
    assert not np.allclose(table["score"], plain["score"], atol=0.01)


def test_the_elbo_of_a_cell_is_that_of_its_posterior(detected, model, cells):
    scored = cells.of("calibration", "query")
    elbo = cell_elbo(model, cells.model_data(scored), CPU, at=cells.posterior.take(scored))
    table = pd.read_parquet(detected["cells"]).set_index("cell_id")
    ours = table.loc[cells.obs.index[scored], "elbo"]
    np.testing.assert_allclose(ours, elbo.of_cells, rtol=1e-6)


# ---- calibration and depth


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
