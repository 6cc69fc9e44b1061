"""The rule detect_anomalies: flags, rankings without a query, and what it says about itself."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control
from sklearn.metrics import roc_auc_score

from bulk_words import of_unit
from detect_anomalies import (
    CROSS_FITTING,
    calibration_warnings,
    channel_table,
    elbo_of,
    false_positives_by_depth,
    spearman,
    summarise,
    usual_cells,
)
from detection import POOLED, contamination, judge, judge_among_themselves, verdict_table
from evidence_channels import CHANNELS, KINDS
from held_cells import read_fits
from model_jobs import ANOMALY as SETTINGS
from model_jobs import detect, detect_by, embed, measure, prune, train, with_obs
from omics_vae.anomaly import conditional_p
from omics_vae.inference import cell_elbo
from run_script import Named
from simulated_counts import CPU, SPLITS, small_run
from splits import fold_cells

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
def detected(tmp_path_factory, paths, trained, latent):
    return detect(tmp_path_factory.mktemp("anomaly"), paths, trained, latent)


@pytest.fixture
def run(paths, trained, latent, tmp_path):
    """Detection again, with some settings changed."""
    return lambda **changed: detect(tmp_path, paths, trained, latent, **changed)


COLUMNS = [
    *("cell_id", "sample", "role", "split", "library_size"),
    *("score", "p_value", "q_value", "is_anomaly", "trimmed", "calibrated_by", "leading_channel"),
]


def test_spiked_cells_are_flagged(detected):
    table = pd.read_parquet(detected["cells"])
    assert list(table.columns)[: len(COLUMNS)] == COLUMNS
    query = table[table["split"] == "query"]
    assert len(query) == SPLITS["query"]
    flagged = set(query.loc[query["is_anomaly"], "cell_id"])
    # Odd in one kind of evidence only, a cell can lose to calibration cells that are odd in others.
    assert len(flagged & set(SPIKED)) >= 8
    assert len(flagged) <= 15
    is_spiked = query["cell_id"].isin(SPIKED)
    assert query.loc[is_spiked, "p_value"].max() < 0.06
    assert (query.loc[is_spiked, "p_single_gene"] == 1 / 101).all()
    np.testing.assert_allclose(query["q_value"], false_discovery_control(query["p_value"]))
    np.testing.assert_array_equal(query["is_anomaly"], query["q_value"] <= 0.1)
    assert (query.loc[query["is_anomaly"], "leading_channel"] != "").all()


def test_calibration_cells_are_ranked_and_not_judged(detected):
    table = pd.read_parquet(detected["cells"])
    assert table["split"].value_counts().to_dict() == {"calibration": 100, "query": 60}
    normal = table[table["split"] == "calibration"]
    assert normal["q_value"].isna().all()
    assert not normal["is_anomaly"].any()
    assert (normal["p_value"] <= 0.05).mean() <= 0.05
    assert np.isfinite(table["elbo"]).all()
    summary = json.loads(detected["summary"].read_text())
    assert not summary["is_ranking"]
    assert (summary["n_calibration"], summary["n_query"]) == (100, 60)
    assert summary["n_anomalies"] == table["is_anomaly"].sum()
    assert summary["smallest_p"] == pytest.approx(1 / 101)
    assert summary["needed_together"] == 6  # 60 / (0.1 * 101) = 5.94
    assert len(summary["fpr_by_depth_fifth"]) == 5
    assert set(summary["channels"]) <= set(CHANNELS)
    channels = pd.read_csv(detected["channels"], sep="\t").set_index("channel")
    assert list(channels.index) == summary["channels"]
    assert channels["kind"].to_dict() == {name: KINDS[name] for name in channels.index}
    assert detected["trimmed"].read_text() == "cell_id\tsample\tscore\tlibrary_size\n"


def test_the_same_inputs_give_the_same_bytes(detected, run):
    again = run()
    for name, path in detected.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_where_the_counts_lie_changes_no_byte(detected, run, counts_stay):
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
    table = pd.read_parquet(written["cells"])
    assert not table["is_anomaly"].any()
    assert set(table["leading_channel"]) == {""}
    assert (pd.read_csv(written["channels"], sep="\t")["n_leading"] == 0).all()
    warnings = json.loads(written["summary"].read_text())["warnings"]
    assert any("too few to flag any of 60" in warning for warning in warnings)


def test_trimmed_calibration_cells_are_listed(paths, trained, latent, detected, run):
    written = run(contamination=0.1)
    listed = pd.read_csv(written["trimmed"], sep="\t")
    table = pd.read_parquet(written["cells"]).set_index("cell_id")
    assert len(listed) == 10
    assert set(listed["cell_id"]) == set(table.index[table["trimmed"]])
    summary = json.loads(written["summary"].read_text())
    assert (summary["n_trimmed"], summary["n_calibration"]) == (10, 90)
    assert summary["smallest_p"] == pytest.approx(1 / 91)
    assert any("10 calibration cells lie far" in line for line in summary["warnings"])
    before = pd.read_parquet(detected["cells"]).set_index("cell_id")["score"]
    assert (
        before[listed["cell_id"]].min()
        > before[table.index[table["split"] == "calibration"]].median()
    )


def test_a_conditional_guarantee_is_dearer(detected, run):
    written = run(guarantee="conditional", conditional_delta=0.3)
    table, before = (pd.read_parquet(files["cells"]) for files in (written, detected))
    np.testing.assert_array_equal(table["score"], before["score"])
    expected = conditional_p(before["p_value"].to_numpy(), 100, 0.3)
    np.testing.assert_allclose(table["p_value"], expected)
    summary = json.loads(written["summary"].read_text())
    assert summary["guarantee"] == "conditional"
    assert summary["smallest_p"] == pytest.approx(
        float(conditional_p(np.array([1 / 101]), 100, 0.3)[0])
    )


def test_batches_that_differ_are_calibrated_by_their_own_cells(paths, trained, latent, tmp_path):
    """With ``always``, batch b (5 calibration cells) is pooled and says so."""
    batch = np.array(["a"] * 420, dtype=object)
    batch[np.r_[260:263, 400:420]] = "b"
    told = with_obs(paths, tmp_path, batch=batch)
    sizes = {"by_batch": "always", "alpha": 0.3}
    written = detect(tmp_path, told, trained, latent, **sizes)
    table = pd.read_parquet(written["cells"])
    assert set(table["calibrated_by"]) == {POOLED}, "97 cells of batch a are too few as well"
    batch[260:263] = "a"
    told = with_obs(paths, tmp_path, batch=batch)
    written = detect(tmp_path, told, trained, latent, **sizes)
    table = pd.read_parquet(written["cells"]).set_index("cell_id")
    assert (table["calibrated_by"] == "a").sum() == 100 + 40
    summary = json.loads(written["summary"].read_text())
    assert (summary["calibrated_by_batch"], summary["n_pooled"]) == (["a"], 20)
    assert any("20 query cells were ranked among the calib" in w for w in summary["warnings"])
    assert table.loc[SPIKED, "is_anomaly"].mean() >= 0.75


# ---- no query: cross-fitting


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """All cells reference, three folds, each scored by a model of the other two.

    Each of the last 12 cells has far too much of another gene: what several share, the models of
    the other folds would learn.
    """
    folder = tmp_path_factory.mktemp("folds")
    paths = small_run(folder)
    adata = ad.read_h5ad(paths["counts"])
    counts = adata.X.tolil()
    for gene, cell in enumerate(range(408, 420)):
        counts[cell, gene] = 500 + round(50 * adata.X[:, gene].mean())
    adata.X = counts.tocsr()
    adata.write_h5ad(paths["counts"])
    cells = [f"cell{i}" for i in range(420)]
    obs = pd.DataFrame({"sample": "S1", "cell": cells, "role": "reference"})
    split, fold, *_ = fold_cells(obs, {"validation": 0.1, "by": "cell", "min_donors": 4}, 3, 1)
    given = with_obs(paths, folder / "in", role="reference", split=split, fold=fold)
    fits = []
    for held in (1, 2, 3):
        fit = train(folder / f"t{held}", given, fold=held, **LONGER)
        fits.append((fit, embed(folder / f"e{held}", given, fit), held))
    return given, fits


@pytest.fixture(scope="module")
def ranked(tmp_path_factory, folded):
    return detect_by(tmp_path_factory.mktemp("ranking"), *folded)


def test_every_cell_is_scored_once_by_a_model_that_has_not_seen_it(ranked, folded):
    given, fits = folded
    table = pd.read_parquet(ranked["cells"]).set_index("cell_id")
    assert list(table.index) == [f"cell{i}" for i in range(420)]
    assert set(table["split"]) == {"query"} and set(table["role"]) == {"reference"}
    files = Named(
        given
        | {
            "weights": [fit["weights"] for fit, *_ in fits],
            "latents": [place for _, place, _ in fits],
        }
        | {"descriptions": [fit["description"] for fit, *_ in fits]}
    )
    whole = read_fits(files, [1, 2, 3], np.inf)
    first, *others = (cells.counts for _, cells in whole)
    assert all(counts is first for counts in others), "the counts are in memory once"
    for held, (model, cells) in enumerate(whole, start=1):
        query = cells.of("query")
        assert (query.obs["fold"] == held).all()
        elbo = cell_elbo(model, query.data, CPU, at=query.posterior).of_cells
        np.testing.assert_allclose(table.loc[query.obs.index, "elbo"], elbo, rtol=1e-6)
    assert len(elbo_of(whole, CPU)) == 420


def test_spiked_cells_lead_the_ranking_which_says_what_it_is(ranked):
    table = pd.read_parquet(ranked["cells"]).set_index("cell_id")
    assert len(set(table["score"].nlargest(12).index) & set(SPIKED)) >= 9
    assert roc_auc_score(table.index.isin(SPIKED), table["score"]) > 0.98
    assert 0 < table["is_anomaly"].sum() <= 20
    assert set(table["calibrated_by"]) == {CROSS_FITTING}
    assert "z_enrichment" not in table
    assert not table["trimmed"].any()
    summary = json.loads(ranked["summary"].read_text())
    assert summary["is_ranking"]
    assert (summary["n_calibration"], summary["n_query"]) == (0, 420)
    assert summary["smallest_p"] is None and summary["needed_together"] == 0
    (warning,) = (line for line in summary["warnings"] if "no separate reference" in line)
    assert warning == (
        "There is no separate reference: every cell was scored by a model that had not seen it, "
        "and the cells were ranked among themselves. It is a ranking, no FDR guarantee; for one "
        "bring trusted normal cells as the reference."
    )
    assert not any(
        "too few to flag" in line or "% of normal" in line for line in summary["warnings"]
    )
    assert (summary["calibrated_by_batch"], summary["n_pooled"]) == ([], 0)


def test_the_order_of_the_folds_is_nothing_to_the_table(ranked, folded, tmp_path):
    given, fits = folded
    again = pd.read_parquet(detect_by(tmp_path, given, fits[::-1])["cells"])
    table = pd.read_parquet(ranked["cells"])
    assert list(again["cell_id"]) == list(table["cell_id"])
    numbers = table.select_dtypes("number").columns
    np.testing.assert_allclose(again[numbers], table[numbers], rtol=1e-6, atol=1e-9)


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
    assert table.loc[SPIKED, "is_anomaly"].mean() >= 0.75
    usual = table.loc[table["split"] == "calibration", "z_single_gene"]
    assert (table.loc[SPIKED, "z_single_gene"] > usual.quantile(0.9)).all()


def test_scores_stand_on_refined_posteriors_where_asked_for(paths, trained, latent, tmp_path):
    refined = embed(tmp_path / "embed", paths, trained, for_scores=True, steps=20)
    table = pd.read_parquet(detect(tmp_path / "a", paths, trained, refined)["cells"])
    plain = pd.read_parquet(detect(tmp_path / "b", paths, trained, latent)["cells"])
    assert (table["elbo"] - plain["elbo"]).mean() > 0.05
    assert not np.allclose(table["score"], plain["score"], atol=0.01)


def test_the_elbo_of_a_cell_is_that_of_its_posterior(detected, paths, trained, latent):
    files = {name: [str(trained[name])] for name in ("weights",)}
    files |= {"descriptions": [str(trained["description"])], "latents": [str(latent)]}
    ((model, cells),) = read_fits(Named(paths | files), [None], np.inf)
    scored = cells.of("calibration", "query")
    elbo = cell_elbo(model, scored.data, CPU, at=scored.posterior)
    table = pd.read_parquet(detected["cells"]).set_index("cell_id")
    np.testing.assert_allclose(table.loc[scored.obs.index, "elbo"], elbo.of_cells, rtol=1e-6)


# ---- calibration and depth


def test_false_positives_are_counted_in_fifths_of_the_depth():
    depth = np.random.default_rng(0).permutation(100).astype(float)
    p = np.where(depth < 20, 0.01, 0.5)
    p[depth == 99] = 0.05
    assert false_positives_by_depth(p, depth) == [1.0, 0.0, 0.0, 0.0, 0.05]


def judged(channels, query, depth, **changed):
    settings = SETTINGS | changed
    trimmed = contamination(channels, ~query, depth, settings["contamination"])
    verdict = judge(channels, ~query, trimmed, depth, None, settings)
    table = verdict_table(channels, verdict, query, 0.1)
    return table.assign(split=np.where(query, "query", "calibration"), library_size=np.exp(depth))


def test_the_channel_table_counts_in_how_many_flagged_cells_a_channel_leads():
    rng = np.random.default_rng(0)
    query, depth = np.arange(300) >= 200, rng.normal(8, 0.5, 300)
    scores = {"program": rng.standard_normal(300), "unseen_genes": rng.standard_normal(300)}
    scores["program"][240:] += 8.0
    scores["unseen_genes"][270:] += 20.0
    table = judged(scores, query, depth)
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
    assert table["kind"].to_dict() == {"program": "residuals", "profile": "residuals"}


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


def test_trimmed_cells_are_no_normal_cells_and_flagged_ones_of_a_ranking_neither():
    rng = np.random.default_rng(0)
    query, depth = np.arange(300) >= 200, rng.normal(8, 0.5, 300)
    score = rng.standard_normal(300)
    score[:5] += 30.0
    score[295:] += 30.0
    table = judged({"program": score}, query, depth)
    normal, unflagged = usual_cells(table)
    assert list(normal.index) == list(range(5, 200))
    assert set(unflagged.index) == set(table.index[query & ~table["is_anomaly"]])
    everyone = np.full(300, True)
    verdict = judge_among_themselves({"program": score}, depth)
    ranking = verdict_table({"program": score}, verdict, everyone, 0.1)
    normal, unflagged = usual_cells(ranking.assign(split="query", library_size=np.exp(depth)))
    assert list(normal.index) == list(unflagged.index) == list(range(5, 295))


def test_the_smallest_p_is_that_of_the_largest_calibration_set_of_a_query_cell():
    rng = np.random.default_rng(0)
    batch = np.array(["a"] * 250 + ["b"] * 150 + ["a"] * 50 + ["b"] * 50, dtype=object)
    score = rng.standard_normal(500) + 3.0 * (batch == "b")
    query = np.arange(500) >= 400
    for guarantee in ("marginal", "conditional"):
        settings = SETTINGS | {"guarantee": guarantee}
        nobody = np.zeros(500, dtype=bool)
        verdict = judge({"program": score}, ~query, nobody, np.full(500, 8.0), batch, settings)
        table = verdict_table({"program": score}, verdict, query, 0.1)
        split = np.where(query, "query", "calibration")
        summary = summarise(table.assign(split=split, library_size=100.0), settings)
        assert summary["calibrated_by_batch"] == ["a", "b"]
        smallest = np.array([1 / 251])
        if guarantee == "conditional":
            smallest = conditional_p(smallest, 250, 0.1)
        assert summary["smallest_p"] == pytest.approx(smallest[0])


def test_a_rank_correlation_with_something_constant_is_zero():
    assert spearman(np.ones(5), np.arange(5)) == 0.0
    assert spearman(np.arange(5), np.arange(5) ** 3) == pytest.approx(1.0)


HEALTHY = {
    "is_ranking": False,
    "n_trimmed": 0,
    "calibrated_by_batch": [],
    "n_pooled": 500,
    "n_unflagged": 500,
    "share_above_half": 0.5,
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
        ({"is_ranking": True}, ["There is no separate reference"]),
        # A ranking has no calibration to say more of, but its score may follow depth.
        (
            {"is_ranking": True, "n_calibration": 0, "share_above_half": 0.1}
            | {"fpr_by_depth_fifth": [0.4] * 5},
            ["There is no separate reference"],
        ),
        (
            {"is_ranking": True, "spearman_depth": 0.3},
            ["There is no separate reference", "follows sequencing depth"],
        ),
        ({"n_trimmed": 7}, ["7 calibration cells lie far from the others"]),
        ({"calibrated_by_batch": ["a"], "n_pooled": 3}, ["3 query cells were ranked among the"]),
        ({"calibrated_by_batch": ["a"], "n_pooled": 0}, []),
        ({"share_above_half": 0.2}, ["Only 20 % of the query cells that were not flagged"]),
        ({"share_above_half": 0.31}, []),
        # A share of a few cells is chance.
        ({"share_above_half": 0.0, "n_unflagged": 49}, []),
        ({"share_above_half": 0.0, "n_unflagged": 50}, ["Only 0 % of the query cells"]),
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
        assert "; " in warning and "\n" not in warning


def test_of_bulk_samples_no_line_speaks_of_cells():
    lines = calibration_warnings(HEALTHY | {"spearman_depth": 0.3, "n_trimmed": 2})
    said = [of_unit(line, "samples") for line in lines]
    assert "compare only samples of similar depth" in said[0]
    assert "filter shallow samples (preprocess.filter_cells)" in said[0]
    assert said[1].startswith("2 calibration samples lie far")
    assert [of_unit(line, "cells") for line in lines] == lines


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
