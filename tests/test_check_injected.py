"""The rule check_injected: what a run would find, measured on anomalies that it was given."""

import numpy as np
import pandas as pd
import pytest

import check_injected
import injection
from check_injected import (
    FIT,
    METHODS,
    Draw,
    average,
    baselines,
    check,
    check_warnings,
    components_of,
    measures,
    one,
    some,
)
from held_cells import Cells, join_cells
from injection import GROUP, KINDS, Kind, possible_kinds
from job import read_json
from model_inputs import latent_table
from model_jobs import ANOMALY as SETTINGS
from model_jobs import read_inputs, with_obs
from omics_vae.counts import Counts
from omics_vae.data import CountData
from omics_vae.inference import embed
from omics_vae.model import save_model
from run_script import run_script
from simulated_counts import (
    CPU,
    NO_DESIGN,
    SPLITS,
    cells_of,
    simulate_types,
    small_model,
    write_run,
)

WRITTEN = {"draws": "check.parquet", "table": "check.tsv", "summary": "summary.json"}
SIZES = {"train": 250, "validation": 60, "calibration": 240, "held": 40}


def run_of(seed: int):
    """A model and cells of three types; those that are held out are of a fourth."""
    split = np.repeat(list(SIZES), list(SIZES.values()))
    kind = np.where(split == "held", 3, np.random.default_rng(seed).integers(0, 3, len(split)))
    simulated = simulate_types(kind, seed=seed, fold=8.0)
    train = CountData(simulated.counts[:250, :40], np.log(simulated.library_size[:250]))
    model = small_model(train)
    return model, cells_of(simulated, split, model)


@pytest.fixture(scope="module")
def run():
    return run_of(0)


# ---- the parts of a check

N_PROGRAM = SETTINGS["program_genes"]


def test_normal_cells_are_halved_into_calibration_and_query(run, monkeypatch):
    model, cells = run
    normal = cells.of("calibration")

    def halves(seed: int):
        held_out = Draw.of(model, cells, normal, N_PROGRAM, seed, CPU).held_out
        assert set(held_out.split) == {"validation", "calibration", "query"}
        return held_out.of("calibration"), held_out.of("query")

    calibration, query = halves(0)
    assert (set(calibration.split), set(query.split)) == ({"calibration"}, {"query"})
    both = [*calibration.obs.index, *query.obs.index]
    assert sorted(both) == sorted(normal.obs.index) and len(set(both)) == 240
    assert len(calibration) == len(query) == 120
    other, _ = halves(1)
    assert list(other.obs.index) != list(calibration.obs.index)
    monkeypatch.setattr(check_injected, "MOST_NORMAL", 50)
    assert [len(half) for half in halves(0)] == [25, 25]


def test_some_cells_keep_their_order(run):
    _, cells = run
    everyone = some(cells, 1000, np.random.default_rng(0))
    assert everyone.obs.equals(cells.obs)
    assert (everyone.counts[:] != cells.counts[:]).nnz == 0
    few = some(cells, 100, np.random.default_rng(0))
    place = cells.obs.index.get_indexer(few.obs.index)
    assert len(few) == 100 and (np.diff(place) > 0).all()


def test_the_error_of_the_components_is_that_of_the_reconstruction(run):
    """|x - V V'x|^2 with V the right singular vectors of the training cells' log profiles."""
    _, cells = run
    train, held_out = cells.of("train"), cells.of("calibration", "held")
    found = baselines(train, components_of(train), held_out)
    both = join_cells([train, held_out])
    scaled = both.counts.toarray()[:, :40] / both.size[:, None] * np.median(train.size)
    profiles = np.log1p(scaled)
    axes = np.linalg.svd(profiles[:250], full_matrices=False)[2][: check_injected.PCA_COMPONENTS]
    left = profiles[250:] - profiles[250:] @ axes.T @ axes
    expected = np.square(left).sum(1)
    # The leading components are found by a randomised search.
    assert np.corrcoef(found["PCA error"], expected)[0, 1] > 0.98
    np.testing.assert_allclose(found["PCA error"].sum(), expected.sum(), rtol=0.05)
    assert (found["PCA error"] >= 0).all()


def test_what_a_few_components_hold_they_leave_no_error_of(run):
    """Training cells of one profile, held-out cells of it and of another."""
    _, cells = run
    counts = np.tile(np.arange(1, 61), (80, 1))
    counts[70:, :20] *= 30
    few = cells.take(np.arange(80))
    toy = Cells(**{**vars(few), "counts": Counts.of(counts), "size": np.full(80, 1e3)})
    rng = np.random.default_rng(0)
    noisy = counts[:50] + rng.poisson(1.0, (50, 60))
    train = Cells(**{**vars(few.take(np.arange(50))), "counts": Counts.of(noisy)})
    train = Cells(**{**vars(train), "size": np.full(50, 1e3)})
    error = baselines(train, components_of(train), toy)["PCA error"]
    assert error[70:].min() > 20 * error[:70].max()


def test_total_counts_are_judged_by_their_distance_from_the_middle(run):
    _, cells = run
    train, held_out = cells.of("train"), cells.of("calibration")
    found = baselines(train, components_of(train), held_out)["total count"]
    total = [np.log(of.counts.toarray().sum(1)) for of in (train, held_out)]
    np.testing.assert_allclose(found, np.abs(total[1] - np.median(total[0])))
    assert list(baselines(train, components_of(train), held_out)) == [
        name for name in METHODS if name != "anomics"
    ]


def test_measures_by_hand():
    truth = np.array([True, True, False, False, False, False])
    score = np.array([6.0, 3.0, 5.0, 2.0, 1.0, 0.0])
    p = np.array([0.01, 0.2, 0.04, 0.3, 0.6, 0.9])
    flagged = np.array([True, False, True, False, False, False])
    size = np.array([9.0, 9.0, 4.0, 3.0, 2.0, 1.0])
    found = measures(truth, score, p, flagged, size)
    assert found["auroc"] == pytest.approx(7 / 8)  # of 8 pairs one is the wrong way round
    assert found["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert (found["power"], found["fdp"], found["fpr"]) == (0.5, 0.5, 0.25)
    assert found["spearman_depth"] == pytest.approx(1.0)
    nobody = measures(truth, score, p, np.zeros(6, dtype=bool), size)
    assert (nobody["power"], nobody["fdp"]) == (0.0, 0.0)
    flat = measures(truth, np.ones(6), p, flagged, size)
    assert (flat["auroc"], flat["spearman_depth"]) == (0.5, 0.0)


def test_draws_are_averaged_a_kind_a_strength_and_a_method():
    rows = [
        {"repeat": repeat, "kind": kind, "strength": "s", "method": method}
        | {"n_injected": 15, "n_normal": 85}
        | dict.fromkeys(check_injected.MEASURES, value)
        for repeat, value in ((1, 0.2), (2, 0.4), (3, 0.9))
        for kind in ("program", "ambient")
        for method in METHODS
    ]
    table = average(pd.DataFrame(rows))
    assert list(table["kind"]) == ["program"] * 3 + ["ambient"] * 3, "in the order of the draws"
    assert list(table["method"]) == [*METHODS] * 2
    assert (table["n_injected"] == 15).all() and (table["n_normal"] == 85).all()
    for name in check_injected.MEASURES:
        np.testing.assert_allclose(table[name], 0.5)
    np.testing.assert_allclose(table["auroc_sd"], np.std([0.2, 0.4, 0.9], ddof=1))


def table_of(fdp=0.05, group=0.95, of_others=0.9) -> pd.DataFrame:
    rows = [
        {"kind": kind, "method": method, "fdp": fdp if ours else of_others}
        | {"auroc": (group if ours else 0.3) if kind == "group" else 0.55}
        for kind in ("single gene", "program", "group")
        for method in METHODS
        for ours in [method == "anomics"]
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (table_of(), []),
        (table_of(fdp=0.149), []),
        (table_of(fdp=0.16), ["16 % of what was flagged was normal, at a nominal 10 %"]),
        (table_of(group=0.79), ["ranks only 0.79 (AUROC) against the others"]),
        (table_of(group=0.81), []),
        (table_of(fdp=0.3, group=0.4), ["30 % of what was flagged", "ranks only 0.40"]),
        (table_of().query("kind != 'group'"), []),
    ],
)
def test_warnings_appear_when_they_should_and_not_else(table, expected):
    found = check_warnings(table, 0.1, n_unseen=200)
    assert len(found) == len(expected)
    for warning, words in zip(found, expected, strict=True):
        assert words in warning
        assert "; " in warning or ", or set" in warning
        assert "\n" not in warning


def test_an_input_of_one_file_is_a_path_or_a_list():
    assert one("a.parquet") == one(["a.parquet"]) == "a.parquet"


# ---- checks


def replaced(value: int):
    """A kind whose cells are nothing like any other."""

    def make(cells, model, device, rng):
        counts = cells.counts[:].tolil()
        counts[:, :5] = value
        return counts.tocsr()

    return Kind("toy", "far off", make)


UNCHANGED = Kind("toy", "as they were", lambda cells, model, device, rng: cells.counts[:].copy())


def checked(kind: Kind, seeds: int, **changed) -> pd.DataFrame:
    """Our rows of one draw for each of several runs, and the baselines'."""
    rows = []
    for seed in range(seeds):
        model, cells = run_of(seed)
        draw = Draw.of(model, cells, cells.of("calibration"), N_PROGRAM, seed, CPU)
        rows += check(model, cells, draw, kind, SETTINGS | changed, seed, CPU)
    return pd.DataFrame(rows)


def test_an_injection_that_changes_nothing_is_not_found_and_the_rates_are_nominal():
    table = checked(UNCHANGED, 25)
    assert (table["n_injected"] == 15).all() and (table["n_normal"] == 105).all()
    for method, of_method in table.groupby("method"):
        # 15 against 105 cells: the AUROC of chance has an SD of 0.08.
        assert of_method["auroc"].mean() == pytest.approx(0.5, abs=3.5 * 0.08 / 5), method
        # FPR of one draw: two sets of some 110 cells; the mean over 25.
        error = np.sqrt(0.05 * 0.95 * 2 / 110 / 25)
        assert of_method["fpr"].mean() == pytest.approx(0.05, abs=3.5 * error), method
        assert of_method["power"].mean() < 0.03
        # With nothing to find, whatever is flagged is false: in at most alpha of the draws.
        assert (of_method["fdp"] > 0).mean() <= 0.1 + 3 * 0.3 / 5


def test_far_off_cells_are_found_and_the_realised_fdp_is_nominal():
    table = checked(replaced(300), 15)
    ours = table[table["method"] == "anomics"]
    assert ours["auroc"].min() > 0.99
    assert ours["power"].mean() > 0.8
    assert ours["fdp"].mean() <= 0.1 + 3 * ours["fdp"].std() / np.sqrt(15)
    assert ours["fpr"].mean() == pytest.approx(0.05, abs=3.5 * np.sqrt(0.05 * 0.95 * 2 / 110 / 15))


def test_a_group_that_no_model_has_seen_is_put_beside_the_normal_cells():
    table = checked(GROUP, 6)
    assert (table["n_injected"] == 15).all() and (table["n_normal"] == 120).all()
    assert set(table["kind"]) == {"group"}
    assert table.loc[table["method"] == "anomics", "auroc"].min() > 0.95


def test_a_draw_is_decided_by_its_seed(run):
    model, cells = run
    normal, kind = cells.of("calibration"), KINDS[4]
    draws = [Draw.of(model, cells, normal, N_PROGRAM, seed, CPU) for seed in (1, 1, 2)]
    first, again, other = (
        check(model, cells, draw, kind, SETTINGS, seed, CPU)
        for draw, seed in zip(draws, (1, 1, 2), strict=True)
    )
    assert first == again
    assert first != other
    # Nor does it depend on the kinds that were tried before on the same draw.
    check(model, cells, draws[0], KINDS[0], SETTINGS, 1, CPU)
    assert check(model, cells, draws[0], kind, SETTINGS, 1, CPU) == first


def test_what_is_known_of_the_normal_cells_is_what_detection_would_find(run, monkeypatch):
    """The verdict with residuals and mixture of the draw is that of a detection from nothing."""
    model, cells = run
    draw = Draw.of(model, cells, cells.of("calibration"), N_PROGRAM, 1, CPU)
    known = check(model, cells, draw, KINDS[6], SETTINGS, 1, CPU)
    detect = check_injected.detect
    monkeypatch.setattr(check_injected, "detect", lambda *given: detect(*given[:6]))
    afresh = check(model, cells, draw, KINDS[6], SETTINGS, 1, CPU)
    pd.testing.assert_frame_equal(pd.DataFrame(known), pd.DataFrame(afresh), rtol=1e-4)


def test_a_tenth_is_injected_and_in_a_small_query_a_quarter_at_most(run):
    model, cells = run
    for n, expected in ((40, 5), (100, 12), (200, 15)):
        normal = cells.of("calibration").take(np.arange(n))
        draw = Draw.of(model, cells, normal, N_PROGRAM, 1, CPU)
        row = check(model, cells, draw, UNCHANGED, SETTINGS, 1, CPU)[0]
        assert (row["n_injected"], row["n_normal"]) == (expected, n // 2 - expected)


# ---- the script


def fit_of(folder, paths, name: str, **held) -> dict:
    """A model and its latent table as files, and their names as inputs."""
    inputs = read_inputs(paths, **held)
    model = small_model(inputs.split("train"))
    files = {what: str(folder / f"{name}_{what}") for what in FIT}
    save_model(
        model, files["weights"], files["description"], inputs.genes, design=NO_DESIGN.as_json()
    )
    posterior = embed(model, inputs.data, CPU)
    latent_table(inputs.cells.index.to_numpy(), posterior).to_parquet(files["latent"])
    return files


def inputs_of(paths, fit, group=None, group_fit=None, summary=None) -> dict:
    """The inputs of the rule; those that only some runs have are lists."""
    other = {f"group_{what}": [group_fit[what]] if group_fit else [] for what in FIT}
    return {
        **paths,
        **{f"fit_{what}": fit[what] for what in FIT},
        **other,
        "group": [group] if group else [],
        "group_summary": [summary] if summary else [],
    }


PARAMS = {
    **{"settings": SETTINGS, "observations": "cells", "fold": None},
    "seed": 1,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run of 420 cells of three types, the rarest held out of a second model."""
    folder = tmp_path_factory.mktemp("run")
    split = np.repeat(list(SPLITS), list(SPLITS.values()))
    kind = np.random.default_rng(0).choice(3, 420, p=[0.5, 0.35, 0.15])
    paths = write_run(folder, simulate_types(kind, seed=2, fold=8.0), split, np.arange(60) < 40)
    held = np.flatnonzero((kind == 2) & (split != "query"))
    group, summary = str(folder / "group.parquet"), str(folder / "group.json")
    pd.DataFrame({"cell_id": [f"cell{i}" for i in held]}).to_parquet(group)
    (folder / "group.json").write_text('{"group": "rare", "n_cells": 5}')
    fit = fit_of(folder, paths, "fit")
    return paths, fit, inputs_of(paths, fit, group, fit_of(folder, paths, "g", held=group), summary)


def test_the_table_has_every_kind_and_every_method(files, tmp_path):
    written = run_script("check_injected", tmp_path, files[2], WRITTEN, PARAMS)
    table = pd.read_csv(written["table"], sep="\t")
    kinds = [(kind.kind, kind.strength) for kind in [*possible_kinds("cells", 40), GROUP]]
    assert list(table.columns) == [
        *("kind", "strength", "method", "n_injected", "n_normal"),
        *(*check_injected.MEASURES, "auroc_sd"),
    ]
    expected = [(*kind, method) for kind in kinds for method in METHODS]
    found = table[["kind", "strength", "method"]].itertuples(index=False, name=None)
    assert list(found) == expected
    draws = pd.read_parquet(written["draws"])
    assert len(draws) == 3 * len(expected)
    assert set(draws["repeat"]) == {1, 2, 3}
    single = draws[draws["kind"] == "single gene"]
    assert (single["strength"] == "z = " + single["value"].astype(int).astype(str)).all()
    assert draws.loc[draws["kind"].isin(["doublet", "group"]), "value"].isna().all()
    of_each = draws[draws["method"] == "anomics"].groupby(["kind", "strength"])["auroc"]
    assert (of_each.nunique() > 1).mean() > 0.5, "each repeat is another draw"
    again = average(draws)
    np.testing.assert_allclose(table["auprc"], again["auprc"], rtol=1e-8)
    rates = ["auroc", "auprc", "power", "fdp", "fpr"]
    assert table[rates].stack().between(0, 1).all()
    ours = table[table["method"] == "anomics"].set_index("kind")
    assert ours.loc["group", "auroc"] > 0.9
    # Where nothing changes, nothing but chance decides: the depth stays in doublets.
    by_total = table[table["method"] == "total count"].set_index("kind")
    assert by_total.loc["ambient", "auroc"].to_numpy() == pytest.approx(0.5, abs=0.25)
    summary = read_json(written["summary"])
    assert (summary["n_normal"], summary["repeats"], summary["alpha"]) == (100, 3, 0.1)
    assert summary["held_out_group"] == {"group": "rare", "n_cells": 5}
    assert summary["methods"] == METHODS
    for name in ("fdp", "power", "fpr"):
        assert summary[f"mean_{name}"] == pytest.approx(ours[name].mean())
    assert summary["warnings"] == check_warnings(table, 0.1, 100)


@pytest.fixture
def few_kinds(monkeypatch):
    monkeypatch.setattr(injection, "KINDS", KINDS[3:4])


def test_the_same_inputs_give_the_same_bytes(files, tmp_path, few_kinds):
    first, again = (
        run_script("check_injected", tmp_path / name, files[2], WRITTEN, PARAMS)
        for name in ("a", "b")
    )
    for name, path in first.items():
        assert again[name].read_bytes() == path.read_bytes(), name
    params = PARAMS | {"seed": 9}
    other = run_script("check_injected", tmp_path / "c", files[2], WRITTEN, params)
    assert other["table"].read_bytes() != first["table"].read_bytes()


def test_where_the_counts_lie_changes_no_byte(files, tmp_path, few_kinds, request):
    read = run_script("check_injected", tmp_path / "read", files[2], WRITTEN, PARAMS)
    request.getfixturevalue("counts_stay")
    left = run_script("check_injected", tmp_path / "left", files[2], WRITTEN, PARAMS)
    for name, path in read.items():
        assert left[name].read_bytes() == path.read_bytes(), name


def test_bulk_samples_are_no_doublets_and_have_no_soup(files, tmp_path):
    paths, fit, _ = files
    params = PARAMS | {"observations": "samples"}
    written = run_script("check_injected", tmp_path, inputs_of(paths, fit), WRITTEN, params)
    found = set(pd.read_csv(written["table"], sep="\t")["kind"])
    assert found == {"single gene", "program"}


def test_refined_posteriors_do_not_tell_calibration_from_injected_cells(files, tmp_path, few_kinds):
    """Both are embedded by the encoder, whatever the latent file holds."""
    paths, fit, _ = files
    first = run_script("check_injected", tmp_path / "a", inputs_of(paths, fit), WRITTEN, PARAMS)
    table = pd.read_parquet(fit["latent"])
    moved = table.filter(like="mean_") + 1.0
    table.assign(**moved).to_parquet(tmp_path / "refined.parquet")
    other = fit | {"latent": str(tmp_path / "refined.parquet")}
    again = run_script("check_injected", tmp_path / "b", inputs_of(paths, other), WRITTEN, PARAMS)
    assert again["table"].read_bytes() == first["table"].read_bytes()


def test_without_a_group_there_is_none_in_the_table(files, tmp_path, few_kinds):
    paths, fit, with_group = files
    written = run_script("check_injected", tmp_path, inputs_of(paths, fit), WRITTEN, PARAMS)
    assert set(pd.read_csv(written["table"], sep="\t")["kind"]) == {"single gene"}
    assert read_json(written["summary"])["held_out_group"] is None
    # No group was large or small enough to be held out: an empty table.
    pd.DataFrame({"cell_id": np.array([], dtype=object)}).to_parquet(tmp_path / "none.parquet")
    given = with_group | {"group": [str(tmp_path / "none.parquet")]}
    written = run_script("check_injected", tmp_path, given, WRITTEN, PARAMS)
    assert set(pd.read_csv(written["table"], sep="\t")["kind"]) == {"single gene"}


def test_the_cells_of_the_fold_are_the_unseen_ones(files, tmp_path, few_kinds):
    paths, _, _ = files
    split = np.where(np.arange(420) % 10 == 0, "validation", "train")
    fold = np.arange(420) % 4 + 1
    given = with_obs(paths, tmp_path / "in", role="reference", split=split, fold=fold)
    fit = fit_of(tmp_path, given, "fold", fold=2)
    params = PARAMS | {"fold": 2}
    written = run_script("check_injected", tmp_path, inputs_of(given, fit), WRITTEN, params)
    assert read_json(written["summary"])["n_normal"] == 105
    assert len(pd.read_csv(written["table"], sep="\t")) == 3


def test_a_run_of_too_few_unseen_cells_goes_on_and_says_that_it_was_not_checked(files, tmp_path):
    paths, fit, _ = files
    split = np.repeat(["train", "validation", "calibration", "query"], [280, 60, 39, 41])
    given = with_obs(paths, tmp_path / "in", split=split)
    written = run_script("check_injected", tmp_path, inputs_of(given, fit), WRITTEN, PARAMS)
    table = pd.read_csv(written["table"], sep="\t")
    assert len(table) == len(pd.read_parquet(written["draws"])) == 0
    assert {"kind", "strength", "method", *check_injected.MEASURES} <= set(table.columns)
    summary = read_json(written["summary"])
    assert [summary[f"mean_{name}"] for name in ("power", "fdp", "fpr")] == [None] * 3
    assert summary["warnings"] == [
        "The run could not be checked on injected anomalies: 39 cells that the model has not seen, "
        "40 are needed; bring more reference cells or raise preprocess.split.calibration (without "
        "a query: fewer anomaly.folds)."
    ]


def test_forty_unseen_cells_are_enough(files, tmp_path, few_kinds):
    paths, fit, _ = files
    split = np.repeat(["train", "validation", "calibration", "query"], [280, 60, 40, 40])
    given = with_obs(paths, tmp_path / "in", split=split)
    written = run_script("check_injected", tmp_path, inputs_of(given, fit), WRITTEN, PARAMS)
    table = pd.read_csv(written["table"], sep="\t")
    assert list(table["method"]) == list(METHODS)
    assert (table["n_injected"] == 5).all() and (table["n_normal"] == 15).all()
