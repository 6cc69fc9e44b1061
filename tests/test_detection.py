"""From channels to verdicts: validity on normal cells, power on others, batches, contamination."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, ks_2samp
from sklearn.metrics import roc_auc_score

import evidence_channels
from detect_anomalies import false_positives_by_depth
from detection import (
    CROSS_FITTING,
    MIN_BATCH_CALIBRATION,
    POOLED,
    Verdict,
    batches_of,
    calibration_groups,
    contamination,
    detect,
    detect_cross_fitted,
    judge,
    judge_among_themselves,
    oddest,
    verdict_table,
)
from evidence_channels import KINDS, mitochondrial_channel, raw_channels, standardise
from held_cells import Cells
from latent_place import fit_mixture
from model_inputs import hold_out
from model_jobs import ANOMALY
from omics_vae.anomaly import conditional_p, ranked_p, tail_p
from omics_vae.counts import Counts
from omics_vae.data import CountData
from omics_vae.model import VAE
from simulated_counts import CPU, cells_of, simulate_types, small_model

HELD_OUT = ("validation", "calibration", "query")
SIZES = {"train": 300, "validation": 60, "calibration": 200, "query": 200}
SPLIT = np.repeat(list(SIZES), list(SIZES.values()))
SETTINGS = ANOMALY


def run_of(seed: int, n_hidden: int = 0) -> tuple[VAE, Cells, np.ndarray]:
    """Three types of cells, and ``n_hidden`` of a fourth that only the query has.

    The model is the null model of the training cells: what it is worth is no matter here.
    """
    kind = np.random.default_rng(seed).integers(0, 3, len(SPLIT))
    kind[len(SPLIT) - n_hidden :] = 3
    simulated = simulate_types(kind, seed=seed, fold=8.0)
    of_model = CountData(simulated.counts[:300, :40], np.log(simulated.library_size[:300]))
    model = small_model(of_model)
    return model, cells_of(simulated, SPLIT, model), kind[SPLIT == "query"] == 3


def detected(seed: int, n_hidden: int = 0, **changed) -> tuple[pd.DataFrame, np.ndarray]:
    model, cells, odd = run_of(seed, n_hidden)
    settings = SETTINGS | changed
    return detect(model, cells.of("train"), cells.of(*HELD_OUT), settings, seed, CPU), odd


def scores(n_calibration: int, n_query: int, rng, n_odd: int = 0) -> dict[str, np.ndarray]:
    """Standardised channels of normal cells; the last ``n_odd`` are far off in two of them."""
    names = ("program", "latent_density", "enrichment")
    channels = {name: rng.standard_normal(n_calibration + n_query) for name in names}
    for name in ("program", "enrichment"):
        channels[name][len(channels[name]) - n_odd :] += 5.0
    return channels


def judged(channels, n_calibration, batch=None, **changed) -> Verdict:
    n = len(channels["program"])
    depth = np.random.default_rng(9).normal(8, 0.5, n)
    is_calibration, settings = np.arange(n) < n_calibration, SETTINGS | changed
    trimmed = contamination(channels, is_calibration, depth, settings["contamination"])
    return judge(channels, is_calibration, trimmed, depth, batch, settings)


# ---- the whole detection


def test_normal_query_cells_are_to_the_detection_as_calibration_cells_are():
    """30 runs without any anomaly: uniform p-values, at every depth, and hardly a flag."""
    seeds, same, rates, by_depth, flagged, trimmed = 30, [], [], [], 0, 0
    for seed in range(seeds):
        table, _ = detected(seed)
        query = table["q_value"].notna()
        same.append(ks_2samp(table.loc[query, "score"], table.loc[~query, "score"]).pvalue)
        p = table.loc[query, "p_value"].to_numpy()
        rates.append([(p <= level).mean() for level in (0.05, 0.2, 0.5)])
        depth = table.index.str.removeprefix("cell").astype(int)[query]
        size = run_of(seed)[1].size[depth]
        by_depth.append(false_positives_by_depth(p, size))
        flagged += table["is_anomaly"].any()
        trimmed += table["trimmed"].sum()
    assert min(same) > 0.01 / seeds
    # Both sides have 200 cells, so the rate of one run has twice the binomial variance.
    for level, rate in zip((0.05, 0.2, 0.5), np.mean(rates, axis=0), strict=True):
        error = np.sqrt(2 * level * (1 - level) / 200 / seeds)
        assert rate == pytest.approx(level, abs=3.3 * error)
    error = np.sqrt(0.05 * 0.95 * (1 / 40 + 1 / 200) / seeds)
    np.testing.assert_allclose(np.mean(by_depth, axis=0), 0.05, atol=3.5 * error)
    assert flagged / seeds <= 0.1 + 3 * np.sqrt(0.09 / seeds)
    assert trimmed == 0


def test_a_cell_type_that_the_reference_lacks_is_found_and_the_fdr_is_kept():
    auroc, power, fdp = [], [], []
    for seed in range(12):
        table, odd = detected(seed, n_hidden=40)
        query = table[table["q_value"].notna()]
        auroc.append(roc_auc_score(odd, query["score"]))
        flagged = query["is_anomaly"].to_numpy()
        power.append(flagged[odd].mean())
        fdp.append((flagged & ~odd).sum() / max(1, flagged.sum()))
        assert roc_auc_score(odd, query["z_enrichment"]) > 0.97
    assert min(auroc) > 0.98
    assert np.median(power) > 0.9 and min(power) > 0.6
    assert np.mean(fdp) <= 0.1 * 160 / 200 + 3 * np.std(fdp) / np.sqrt(12)


def test_every_calibration_and_query_cell_has_its_row():
    model, cells, _ = run_of(0)
    table, _ = detected(0)
    scored = cells.of("calibration", "query")
    assert list(table.index) == list(scored.obs.index)
    assert table.index.name == "cell_id"
    assert (table["q_value"].notna() == (scored.split == "query")).all()
    again = detect(model, cells.of("train"), cells.of(*HELD_OUT), SETTINGS, 0, CPU)
    pd.testing.assert_frame_equal(again, table)


def test_no_channel_knows_which_cell_is_calibration_and_which_is_query():
    """Any half of them may change places with any other: no raw score of a cell moves by a bit."""
    model, cells, _ = run_of(1, n_hidden=40)
    held_out = cells.of(*HELD_OUT)
    rng, split = np.random.default_rng(0), held_out.split.astype(object)
    swapped = split.copy()
    ranked = np.flatnonzero(split != "validation")
    swapped[ranked] = rng.permutation(split[ranked])
    assert (swapped != split).sum() > 100
    other = Cells(**{**vars(held_out), "obs": held_out.obs.assign(split=swapped)})
    train = cells.of("train")
    found = raw_channels(model, train, held_out, SETTINGS, 1, CPU)
    again = raw_channels(model, train, other, SETTINGS, 1, CPU)
    assert set(found) == set(again) and "enrichment" in found
    for name, score in found.items():
        np.testing.assert_array_equal(again[name], score, err_msg=name)


def test_every_channel_has_a_kind_and_channels_without_their_genes_are_left_out():
    model, cells, _ = run_of(0)
    held_out = cells.of(*HELD_OUT)
    found = raw_channels(model, cells.of("train"), held_out, SETTINGS, 1, CPU)
    assert set(KINDS) - set(found) == {"mitochondrial", "unseen_genes"}
    genes = cells.genes.tolist()
    genes[50:52] = ["MT-ND1", "mt-Co1"]
    named = Cells(**{**vars(held_out), "genes": pd.Index(genes)})
    share = held_out.counts.toarray()[:, 50:52].sum(1) / held_out.size
    np.testing.assert_allclose(mitochondrial_channel(named), np.log(share + 0.005))
    whole = raw_channels(model, cells.of("train"), named, SETTINGS, 1, CPU)
    assert set(whole) - set(found) == {"mitochondrial"}


def test_cells_that_the_calibration_set_does_not_hold_make_no_difference_to_it():
    """The reference alone decides what is normal, but for the company that cells keep."""
    model, cells, _ = run_of(2, n_hidden=40)
    train, whole = cells.of("train"), cells.of(*HELD_OUT)
    few = cells.of("validation", "calibration")
    normal = whole.split != "query"
    found = raw_channels(model, train, whole, SETTINGS, 1, CPU)
    alone = raw_channels(model, train, few, SETTINGS, 1, CPU)
    for name in set(found) - {"enrichment"}:
        np.testing.assert_allclose(found[name][normal], alone[name], rtol=1e-5, atol=1e-6)


def test_channels_are_standardised_by_held_out_cells_that_are_normal():
    """Validation cells help to set the scale; query cells, whatever they are, do not."""
    model, cells, _ = run_of(3, n_hidden=100)
    held_out = cells.of(*HELD_OUT)
    raw = raw_channels(model, cells.of("train"), held_out, SETTINGS, 3, CPU)
    expected = standardise(raw, held_out.log_depth, held_out.split != "query")
    table = detect(model, cells.of("train"), held_out, SETTINGS, 3, CPU)
    for name, score in expected.items():
        np.testing.assert_array_equal(table[f"z_{name}"], score[held_out.split != "validation"])


def test_the_latent_density_is_chosen_by_validation_cells_alone(monkeypatch):
    """Chosen by calibration cells it would fit them better than it fits the query."""
    given = []

    def spy(train, validation, seed):
        given.append((len(train), len(validation)))
        return fit_mixture(train, validation, seed)

    monkeypatch.setattr(evidence_channels, "fit_mixture", spy)
    model, cells, _ = run_of(0)
    raw_channels(model, cells.of("train"), cells.of(*HELD_OUT), SETTINGS, 1, CPU)
    assert given == [(300, 60)]


# ---- contamination


def test_contaminated_calibration_cells_are_left_out_and_the_power_comes_back():
    rng, n = np.random.default_rng(0), 400
    channels = scores(n, 200, rng, n_odd=30)
    clean = judged(channels, n)
    for name in ("program", "enrichment"):
        channels[name][:20] += 12.0
    power, trimmed = {}, {}
    for share in (None, 0.05, 0.1, 0):
        verdict = judged(channels, n, contamination=share)
        flagged = false_discovery_control(verdict.p_value[n:]) <= 0.1
        power[share] = flagged[170:].mean()
        trimmed[share] = np.flatnonzero(verdict.trimmed)
    # Those that are odd together do not hide each other, whether their share is known or not.
    assert trimmed[None].tolist() == trimmed[0.05].tolist() == list(range(20))
    assert len(trimmed[0.1]) == 40 and set(range(20)) < set(trimmed[0.1])
    assert len(trimmed[0]) == 0
    assert min(power[None], power[0.05], power[0.1]) > 0.9
    assert power[0] == 0.0, "20 odd calibration cells cost every discovery"
    assert not clean.trimmed.any()


def test_contamination_is_sought_among_calibration_cells_by_group_and_residuals():
    rng, is_calibration = np.random.default_rng(0), np.arange(300) < 200
    depth, far = rng.normal(8, 0.5, 300), rng.normal(size=300)
    far[[199, 299]] = 50.0
    for name in ("program", "enrichment", "latent_density", "mitochondrial"):
        found = contamination(scores(200, 100, rng) | {name: far}, is_calibration, depth, None)
        expected = [199] if KINDS[name] in ("group", "residuals") else []
        assert np.flatnonzero(found).tolist() == expected


def contaminated_run(seed: int) -> tuple[VAE, Cells, Cells, np.ndarray]:
    """Of 60 cells of a hidden type 10 stand among the 200 calibration cells (5 %)."""
    model, cells, _ = run_of(seed, n_hidden=60)
    split, truth = cells.split.astype(object), np.arange(len(cells)) >= len(cells) - 60
    split[np.flatnonzero(truth)[:10]] = "calibration"
    cells = Cells(**{**vars(cells), "obs": cells.obs.assign(split=split)})
    return model, cells.of("train"), cells.of(*HELD_OUT), truth[cells.split != "train"]


def test_five_in_a_hundred_foreign_calibration_cells_do_not_cost_the_power():
    """They stretch the scale of every channel if they take part in it, and hide behind it."""
    shares = {"no": 0, "far": None, "told": 0.05}
    recall, wrong, fdp = ({name: [] for name in shares} for _ in range(3))
    for seed in range(8):
        model, train, held_out, truth = contaminated_run(seed)
        scored = held_out.split != "validation"
        odd, query = truth[scored], (held_out.split == "query")[scored]
        for name, share in shares.items():
            settings = SETTINGS | {"contamination": share}
            table = detect(model, train, held_out, settings, seed, CPU)
            flagged, trimmed = (table[column].to_numpy() for column in ("is_anomaly", "trimmed"))
            recall[name].append(flagged[query & odd].mean())
            wrong[name].append((trimmed & ~odd).sum())
            fdp[name].append((flagged & ~odd).sum() / max(1, flagged.sum()))
    assert np.mean(recall["no"]) < 0.1
    assert np.mean(recall["far"]) > 0.6 and np.mean(recall["told"]) > 0.95
    assert sum(wrong["far"]) == 0 and sum(wrong["told"]) <= 2 * 8
    for rates in fdp.values():
        assert np.mean(rates) < 0.1 + 3 * np.std(rates) / np.sqrt(8)


def test_trimmed_cells_do_not_set_the_scale():
    model, train, held_out, _ = contaminated_run(5)
    table = detect(model, train, held_out, SETTINGS, 5, CPU)
    trimmed = table["trimmed"].reindex(held_out.obs.index, fill_value=False).to_numpy()
    assert trimmed.sum() > 5
    raw = raw_channels(model, train, held_out, SETTINGS, 5, CPU)
    expected = standardise(raw, held_out.log_depth, (held_out.split != "query") & ~trimmed)
    for name, score in expected.items():
        np.testing.assert_array_equal(table[f"z_{name}"], score[held_out.split != "validation"])


def test_what_was_trimmed_ranks_nobody():
    """The p-values are those that the other calibration cells alone would give."""
    rng, n = np.random.default_rng(1), 200
    channels = scores(n, 50, rng)
    channels["program"][:10] += 40.0
    verdict = judged(channels, n)
    assert np.flatnonzero(verdict.trimmed).tolist() == list(range(10))
    kept = np.arange(250) >= 10
    trusted = (np.arange(250) < n)[kept]
    np.testing.assert_array_equal(verdict.p_value[kept], ranked_p(verdict.score[kept], trusted))
    assert verdict.p_value[n:].min() >= 1 / 191
    # A trimmed cell is ranked as a query cell would be: p = 1 / (n + 1) is possible.
    assert verdict.p_value[:10].max() <= 5 / 191


def test_a_clean_calibration_set_loses_none_over_twenty_seeds():
    for seed in range(20):
        verdict = judged(scores(1000, 100, np.random.default_rng(seed)), 1000)
        assert not verdict.trimmed.any()


def test_the_oddest_share_is_rounded_up_and_ties_do_not_widen_it():
    score = np.array([9.0, 1.0, 5.0, 7.0, 3.0])
    assert np.flatnonzero(oddest(score, 0.2)).tolist() == [0]
    assert np.flatnonzero(oddest(score, 0.21)).tolist() == [0, 3]
    assert not oddest(score, 0.0).any()
    ties = oddest(np.ones(5), 0.4)
    assert ties.sum() == 2, "ties are not all trimmed"


# ---- p-values that hold for the calibration set at hand


def test_the_conditional_guarantee_changes_p_values_and_no_score():
    rng, n = np.random.default_rng(2), 300
    channels = scores(n, 100, rng, n_odd=40)
    marginal = judged(channels, n)
    conditional = judged(channels, n, guarantee="conditional", conditional_delta=0.2)
    np.testing.assert_array_equal(conditional.score, marginal.score)
    np.testing.assert_array_equal(conditional.p_value, conditional_p(marginal.p_value, n, 0.2))
    assert (conditional.p_value >= marginal.p_value).all()
    flagged = [
        (false_discovery_control(verdict.p_value[n:]) <= 0.1).sum()
        for verdict in (marginal, conditional)
    ]
    assert 0 < flagged[1] <= flagged[0]


def test_a_trimmed_calibration_set_is_as_large_as_what_is_left_of_it():
    rng, n = np.random.default_rng(3), 200
    channels = scores(n, 50, rng)
    channels["enrichment"][:20] += 40.0
    marginal = judged(channels, n)
    conditional = judged(channels, n, guarantee="conditional")
    assert marginal.trimmed.sum() == 20
    expected = conditional_p(marginal.p_value, 180, 0.1)
    np.testing.assert_array_equal(conditional.p_value, expected)


# ---- calibration by batch


def in_batches(rng, per_batch: dict[str, tuple[int, int]], shift: dict[str, float]):
    """(calibration, query) cells of each batch, some of which score higher as a whole."""
    batch, is_calibration = [], []
    for name, (n_calibration, n_query) in per_batch.items():
        batch += [name] * (n_calibration + n_query)
        is_calibration += [True] * n_calibration + [False] * n_query
    batch, is_calibration = np.array(batch, dtype=object), np.array(is_calibration)
    score = rng.standard_normal(len(batch))
    for name, by in shift.items():
        score[batch == name] += by
    return score, is_calibration, batch


TWO = {"a": (300, 300), "b": (300, 300)}


@pytest.mark.parametrize(
    ("per_batch", "shift", "by_batch", "expected"),
    [
        (TWO, {"b": 1.0}, "auto", {"a", "b"}),
        (TWO, {}, "auto", {POOLED}),
        (TWO, {}, "always", {"a", "b"}),
        (TWO, {"b": 1.0}, "never", {POOLED}),
        (TWO | {"c": (99, 50)}, {"b": 1.0}, "auto", {"a", "b", POOLED}),
        (TWO | {"c": (100, 50)}, {"b": 1.0}, "auto", {"a", "b", "c"}),
        # A batch that the reference lacks.
        (TWO | {"c": (0, 50)}, {"b": 1.0}, "always", {"a", "b", POOLED}),
        ({"a": (300, 300)}, {}, "always", {POOLED}),
        ({"a": (50, 50), "b": (50, 50)}, {"b": 3.0}, "auto", {POOLED}),
        ({"a": (300, 100), "b": (0, 100)}, {"b": 1.0}, "auto", {POOLED}),
    ],
)
def test_batches_are_ranked_apart_where_they_differ_and_are_large_enough(
    per_batch, shift, by_batch, expected
):
    score, trusted, batch = in_batches(np.random.default_rng(0), per_batch, shift)
    group = calibration_groups(score, trusted, batch, by_batch)
    assert set(group) == expected
    assert MIN_BATCH_CALIBRATION == 100
    for name in expected - {POOLED}:
        np.testing.assert_array_equal(group == name, batch == name)


def test_batches_that_do_not_differ_are_seldom_ranked_apart():
    rng = np.random.default_rng(0)
    apart = sum(
        (calibration_groups(*in_batches(rng, TWO, {}), "auto") != POOLED).any() for _ in range(300)
    )
    assert apart / 300 <= 0.01 + 3 * np.sqrt(0.01 / 300)


def test_without_batches_or_variation_all_are_pooled():
    score, trusted, batch = in_batches(np.random.default_rng(0), TWO, {})
    assert set(calibration_groups(score, trusted, None, "always")) == {POOLED}
    assert set(calibration_groups(np.ones(len(score)), trusted, batch, "auto")) == {POOLED}


def test_each_batch_keeps_its_false_positive_rate_where_pooling_does_not():
    rng, rates = np.random.default_rng(0), {"auto": [], "never": []}
    for _ in range(20):
        shifted, is_calibration, batch = in_batches(rng, TWO, {"b": 1.5})
        order = np.argsort(~is_calibration, kind="stable")
        shifted, batch = shifted[order], batch[order]
        channels = {name: shifted + rng.normal(0, 0.3, 1200) for name in ("program", "enrichment")}
        for by_batch, found in rates.items():
            p = judged(channels, 600, batch, by_batch=by_batch).p_value[600:]
            found.append([(p[batch[600:] == name] <= 0.05).mean() for name in "ab"])
    apart, pooled = (np.mean(rates[name], axis=0) for name in ("auto", "never"))
    np.testing.assert_allclose(apart, 0.05, atol=0.012)
    assert pooled[0] < 0.02 and pooled[1] > 0.08, "half of the cells pay for the other half"


def test_who_is_pooled_is_ranked_among_all_batches():
    rng = np.random.default_rng(0)
    score, is_calibration, batch = in_batches(rng, TWO | {"c": (40, 60)}, {"b": 2.0})
    order = np.argsort(~is_calibration, kind="stable")
    score, batch = score[order], batch[order]
    channels = {"program": score, "enrichment": score}
    verdict = judged(channels, 640, batch)
    is_calibration = np.arange(len(score)) < 640
    assert (verdict.group == np.where(batch == "c", POOLED, batch)).all()
    everyone = ranked_p(verdict.score, is_calibration)
    in_c = batch == "c"
    np.testing.assert_array_equal(verdict.p_value[in_c], everyone[in_c])
    assert verdict.p_value[~in_c].min() == pytest.approx(1 / 301)


def test_the_batch_is_read_from_the_metadata():
    _, cells, _ = run_of(0)
    assert batches_of(cells) is None
    told = Cells(**{**vars(cells), "obs": cells.obs.assign(batch=pd.Categorical([3] * 760))})
    assert set(batches_of(told)) == {"3"}


# ---- the table


def test_the_table_of_verdicts_by_hand():
    rng, n = np.random.default_rng(0), 300
    channels = scores(n, 100, rng)
    channels["program"][360:] += 9.0
    channels["enrichment"][380:] += 20.0
    channels["program"][:4] += 30.0
    verdict = judged(channels, n)
    query = np.arange(400) >= n
    table = verdict_table(channels, verdict, query, 0.1)
    names = list(channels)
    assert list(table) == [
        *("score", "p_value", "q_value", "is_anomaly", "trimmed", "calibrated_by"),
        *("leading_channel", *(f"z_{name}" for name in names), *(f"p_{name}" for name in names)),
    ]
    assert table["q_value"][:n].isna().all()
    q = false_discovery_control(verdict.p_value[query])
    np.testing.assert_array_equal(table["q_value"][n:], q)
    np.testing.assert_array_equal(table["is_anomaly"][n:], q <= 0.1)
    assert not table["is_anomaly"][:n].any()
    assert np.flatnonzero(table["trimmed"]).tolist() == [0, 1, 2, 3]
    assert set(table["calibrated_by"]) == {POOLED}
    # Ranks tie where two channels pass all calibration cells; distances do not.
    assert table["is_anomaly"][360:].all()
    assert set(table["leading_channel"][360:380]) == {"program"}
    assert set(table["leading_channel"][380:]) == {"enrichment"}
    assert set(table.loc[~table["is_anomaly"], "leading_channel"]) == {""}
    trusted = ~query & ~verdict.trimmed
    for name, score in channels.items():
        np.testing.assert_array_equal(table[f"z_{name}"], score)
        np.testing.assert_array_equal(table[f"p_{name}"], ranked_p(score, trusted))


def test_without_a_calibration_set_the_p_values_are_of_the_tail():
    rng = np.random.default_rng(0)
    channels = scores(0, 300, rng, n_odd=6)
    for score in channels.values():
        score[294:] += 6.0
    verdict = judge_among_themselves(channels, rng.normal(8, 0.5, 300))
    assert set(verdict.group) == {CROSS_FITTING}
    assert not verdict.trimmed.any()
    np.testing.assert_array_equal(verdict.p_value, tail_p(verdict.score))
    table = verdict_table(channels, verdict, np.full(300, True), 0.1)
    assert table["q_value"].notna().all()
    assert set(np.argsort(-verdict.score)[:6]) == set(range(294, 300))
    assert table["is_anomaly"][294:].all()
    for name, score in channels.items():
        np.testing.assert_array_equal(table[f"p_{name}"], tail_p(score))


# ---- cross-fitting


@pytest.fixture(scope="module")
def folds():
    """Three models, of each fold's other cells; the last 15 of 360 cells are of another type."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 360)
    kind[345:] = 3
    simulated = simulate_types(kind, seed=0, fold=8.0)
    split = np.where(rng.random(360) < 0.15, "validation", "train").astype(object)
    fold = rng.permutation(360) % 3 + 1
    found = []
    for held in (1, 2, 3):
        seen = np.flatnonzero((fold != held) & (split == "train"))
        data = CountData(simulated.counts[seen][:, :40], np.log(simulated.library_size[seen]))
        cells = cells_of(simulated, split, small_model(data), fold=fold)
        cells = Cells(**{**vars(cells), "obs": hold_out(cells.obs, fold=held)})
        found.append((small_model(data), cells))
    return found


def test_every_cell_is_scored_once_and_odd_ones_rank_high(folds):
    table = detect_cross_fitted(folds, SETTINGS, 1, CPU)
    assert sorted(table.index) == sorted(folds[0][1].obs.index)
    assert table.index.is_unique and table.index.name == "cell_id"
    assert table["q_value"].notna().all()
    assert set(table["calibrated_by"]) == {CROSS_FITTING}
    assert "z_enrichment" not in table, "a group is in the training cells of the other folds"
    odd = table.index.isin([f"cell{i}" for i in range(345, 360)])
    assert roc_auc_score(odd, table["score"]) > 0.98


def test_a_cell_is_scored_by_the_model_of_its_fold_alone(folds):
    table = detect_cross_fitted(folds, SETTINGS, 1, CPU)
    other = small_model(folds[0][1].of("query").data, n_hidden=8)
    again = detect_cross_fitted([folds[0], (other, folds[1][1]), folds[2]], SETTINGS, 1, CPU)
    in_second = (folds[1][1].obs.loc[table.index, "fold"] == 2).to_numpy()
    moved = (again["z_profile"] != table["z_profile"]).to_numpy()
    assert moved[in_second].all() and not moved[~in_second].any()


def test_folds_may_come_in_any_order(folds):
    table = detect_cross_fitted(folds, SETTINGS, 1, CPU)
    again = detect_cross_fitted(folds[::-1], SETTINGS, 1, CPU).loc[table.index]
    numbers = table.select_dtypes("number").columns
    np.testing.assert_allclose(again[numbers], table[numbers], rtol=1e-6, atol=1e-9)


def test_a_channel_that_one_fold_lacks_is_left_out_of_all(folds):
    """Which genes are rare is decided by each fold's own training cells."""
    model, cells = folds[1]
    train = np.flatnonzero(cells.split == "train")
    counts = cells.counts[:].tolil()
    counts[train, 59] = 0
    changed = Cells(**{**vars(cells), "counts": Counts.of(counts)})
    one = raw_channels(
        model, changed.of("train"), changed.of("validation", "query"), SETTINGS, 1, CPU
    )
    assert "unseen_genes" in one
    for order in ([folds[0], (model, changed), folds[2]], [(model, changed), folds[0], folds[2]]):
        table = detect_cross_fitted(order, SETTINGS, 1, CPU)
        assert "z_unseen_genes" not in table and "z_program" in table
        assert len(table) == 360 and table.notna().all(axis=None)
