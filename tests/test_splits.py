"""Reference cells are parted as asked, by names and seed alone."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job import InputError
from splits import MIN_CELLS, check_before_filtering, fold_cells, split_cells

SETTINGS = {"validation": 0.1, "calibration": 0.33, "by": "auto", "min_donors": 6}


def make_obs(n_reference: int, n_query: int = 50, **columns) -> pd.DataFrame:
    obs = pd.DataFrame(
        {
            "sample": ["r"] * n_reference + ["q"] * n_query,
            "cell": [f"c{i}" for i in range(n_reference + n_query)],
            "role": ["reference"] * n_reference + ["query"] * n_query,
        }
    )
    return obs.assign(**columns)


def with_donors(sizes, names=None) -> pd.DataFrame:
    names = names or [f"d{i}" for i in range(len(sizes))]
    donors = np.repeat(names, sizes).tolist()
    return make_obs(len(donors), donor=[*donors, *["new"] * 50])


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=40),
    validation=st.floats(0.05, 0.3),
    calibration=st.floats(0.1, 0.5),
)
def test_fractions_hold_within_one_cell_in_all_and_two_in_each_sample(
    sizes, validation, calibration
):
    sizes = [*sizes, 300]
    n = sum(sizes)
    obs = make_obs(n)
    obs.loc[: n - 1, "sample"] = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    asked = SETTINGS | {"validation": validation, "calibration": calibration}
    split, by, _ = split_cells(obs, asked, seed=1)
    assert by == "cell"
    assert (split[n:] == "query").all()
    assert abs((split == "validation").sum() - validation * n) <= 1
    assert abs((split == "calibration").sum() - calibration * n) <= 1
    for name, size in zip(*np.unique(obs["sample"][:n], return_counts=True), strict=True):
        here = split[:n][obs["sample"][:n] == name]
        assert abs((here == "validation").sum() - validation * size) <= 2
        assert abs((here == "calibration").sum() - calibration * size) <= 2


def test_batches_within_a_sample_are_strata_too():
    obs = make_obs(1000, batch=["a"] * 100 + ["b"] * 900 + ["a"] * 50)
    for seed in range(5):
        split = split_cells(obs, SETTINGS, seed)[0]
        assert abs((split[:100] == "calibration").sum() - 33) <= 2


def test_permuting_cells_permutes_the_split():
    obs = make_obs(400, batch=["a", "b"] * 225)
    order = np.random.default_rng(0).permutation(len(obs))
    split = split_cells(obs, SETTINGS, seed=3)[0]
    assert (split_cells(obs.iloc[order], SETTINGS, seed=3)[0] == split[order]).all()
    donors = with_donors([60, 50, 70, 40, 80, 50, 60])
    order = np.random.default_rng(0).permutation(len(donors))
    split, by, _ = split_cells(donors, SETTINGS, seed=3)
    assert by == "donor"
    assert (split_cells(donors.iloc[order], SETTINGS, seed=3)[0] == split[order]).all()


@pytest.mark.parametrize("obs", [make_obs(400), with_donors([60, 50, 70, 40, 80, 50, 60])])
def test_the_seed_decides(obs):
    splits = [split_cells(obs, SETTINGS, seed)[0] for seed in (0, 0, 1, 2, 3)]
    assert (splits[0] == splits[1]).all()
    assert any((splits[0] != other).any() for other in splits[2:])


def test_the_split_is_random_within_a_sample():
    """No run of neighbours: half of the calibration cells stand in each half of the file."""
    split = split_cells(make_obs(2000), SETTINGS, seed=0)[0]
    first = (split[:1000] == "calibration").sum()
    assert abs(first - 330) < 5 * np.sqrt(2000 * 0.33 * 0.67) / 2
    # Drawing without order makes "next cell has the same split" as frequent as chance.
    same = (split[:1999] == split[1:2000]).mean()
    assert same == pytest.approx(0.57**2 + 0.1**2 + 0.33**2, abs=0.06)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(60, 200), min_size=6, max_size=20), seed=st.integers(0, 99))
def test_donors_never_straddle_and_shares_are_near_the_asked(sizes, seed):
    obs = with_donors(sizes)
    split, by, _ = split_cells(obs, SETTINGS, seed)
    assert by == "donor"
    reference = obs["role"] == "reference"
    per_donor = pd.Series(split[reference]).groupby(obs["donor"][reference].to_numpy()).nunique()
    assert (per_donor == 1).all()
    shares = pd.Series(split[reference]).value_counts(normalize=True)
    largest = max(sizes) / sum(sizes)
    assert shares["calibration"] == pytest.approx(0.33, abs=largest)
    assert shares["validation"] == pytest.approx(0.1, abs=largest)


def test_equal_donors_are_parted_as_well_as_can_be():
    split = split_cells(with_donors([100] * 10), SETTINGS, seed=5)[0]
    assert (split == "validation").sum() == 100
    assert (split == "calibration").sum() == 300


def test_a_donor_with_most_of_the_cells_is_trained_on():
    obs = with_donors([600] + [40] * 10)
    for seed in range(10):
        split = split_cells(obs, SETTINGS, seed)[0]
        assert set(split[:600]) == {"train"}
        assert 60 <= (split == "validation").sum() <= 140


def test_auto_needs_enough_donors_and_all_cells_to_have_one():
    assert split_cells(with_donors([60] * 5), SETTINGS, 0)[1] == "cell"
    assert split_cells(with_donors([60] * 6), SETTINGS, 0)[1] == "donor"
    obs = with_donors([60] * 6)
    obs.loc[7, "donor"] = ""
    assert split_cells(obs, SETTINGS, 0)[1] == "cell"
    assert split_cells(with_donors([60] * 6), SETTINGS | {"by": "cell"}, 0)[1] == "cell"


@pytest.mark.parametrize(
    ("obs", "change", "message"),
    [
        (make_obs(0), {}, "no reference cells.*role reference"),
        (make_obs(300, 0), {}, "no query cells.*role query .* or role reference to every sample"),
        (make_obs(300), {"by": "donor"}, "300 of 300 reference cells have no donor"),
        (with_donors([200, 200]), {"by": "donor"}, "has 2 donor"),
        (make_obs(9), {"validation": 0.2}, "only 4 train cells and 6 are needed"),
        (make_obs(100), {"validation": 0.01}, "only 1 validation cells and 2"),
        (make_obs(25), {"calibration": 0.05}, "only 1 calibration cells and 2"),
    ],
)
def test_what_cannot_be_split_is_said(obs, change, message):
    with pytest.raises(InputError, match=message):
        split_cells(obs, SETTINGS | change, seed=0)


def test_just_enough_cells_are_enough():
    asked = SETTINGS | {"validation": 0.2, "calibration": 0.2}
    split = split_cells(make_obs(10), asked, seed=0)[0]
    sizes = {name: int((split == name).sum()) for name in MIN_CELLS}
    assert sizes == MIN_CELLS


def test_few_cells_are_a_warning_and_enough_are_none():
    asked = SETTINGS | {"validation": 0.2, "calibration": 0.3}
    assert split_cells(make_obs(100), asked, seed=0)[2] == []
    (warning,) = split_cells(make_obs(99), asked, seed=0)[2]
    assert warning.startswith("preprocess.split: only 49 train cells (advised: 50), so only gross")
    (warning,) = split_cells(make_obs(40), SETTINGS, seed=0)[2]
    assert "only 23 train, 4 validation, 13 calibration cells (advised: 50, 10, 20)" in warning
    assert split_cells(make_obs(40), SETTINGS, seed=0, unit="samples")[2] == []


def test_a_ranking_without_a_reference_is_a_warning():
    (warning,) = fold_cells(make_obs(0, 300), ALL, 2, 0)[3]
    assert warning.startswith("sample table: no sample has the role reference, so all cells are")
    assert fold_cells(make_obs(300, 0), ALL, 2, 0)[3] == []
    (warning,) = fold_cells(make_obs(60, 0), ALL, 2, 0)[3]
    assert "only 27 train, 3 validation cells (advised: 50, 10)" in warning


def test_a_batch_or_donor_of_the_query_only_is_a_warning():
    obs = make_obs(300, batch=["a"] * 301 + ["b"] * 49)
    warnings = split_cells(obs, SETTINGS, seed=0)[2]
    assert len(warnings) == 1
    assert warnings[0].startswith("batch b is in the query only")
    obs = make_obs(300, batch=["a"] * 300 + ["b"] * 50)
    (warning,) = split_cells(obs, SETTINGS, seed=0)[2]
    assert warning.startswith("no batch holds both reference and query (query: b), so effects of")
    warnings = split_cells(with_donors([300]), SETTINGS, seed=0)[2]
    assert len(warnings) == 1
    assert "1 donor(s) of the query are not in the reference" in warnings[0]
    assert split_cells(with_donors([60] * 6), SETTINGS, seed=0)[2] == []


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 60),
    n_folds=st.sampled_from([0, 2, 5]),
    validation=st.sampled_from([0.05, 0.1, 0.2]),
    calibration=st.sampled_from([0.1, 0.33, 0.5]),
    dropped=st.integers(0, 20),
)
def test_what_is_refused_before_filtering_is_refused_after_it(
    n, n_folds, validation, calibration, dropped
):
    """And with no cell dropped both refuse the same."""
    asked = SETTINGS | {"validation": validation, "calibration": calibration}

    def refusal(step, *arguments) -> str:
        try:
            step(*arguments)
        except InputError as error:
            return str(error)
        return ""

    before = make_obs(n, 0 if n_folds else 50)
    early = refusal(check_before_filtering, before, asked, n_folds)
    for cells in (before, before.iloc[dropped:]):
        late = (
            refusal(fold_cells, cells, asked, n_folds, 0)
            if n_folds
            else refusal(split_cells, cells, asked, 0)
        )
        assert not early or late
        if cells is before:
            assert late == early


# ---- folds, where there is no query

ALL = SETTINGS | {"min_donors": 4}


def all_reference(n: int, **columns) -> pd.DataFrame:
    return make_obs(n, 0, **columns)


def of_donors(sizes) -> pd.DataFrame:
    donors = np.repeat([f"d{i}" for i in range(len(sizes))], sizes)
    return all_reference(len(donors), donor=donors)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(220, 400), n_folds=st.integers(2, 7), seed=st.integers(0, 99))
def test_every_cell_has_one_fold_and_folds_are_even(n, n_folds, seed):
    split, fold, by, _ = fold_cells(all_reference(n), ALL, n_folds, seed)
    assert by == "cell"
    assert set(split) == {"train", "validation"}
    assert set(fold) == set(range(1, n_folds + 1))
    assert abs((split == "validation").sum() - 0.1 * n) <= 1
    # Each fold gives as many cells to score, and as many of them stop the others' training.
    for name in ("train", "validation"):
        assert np.ptp(np.bincount(fold[split == name], minlength=n_folds + 1)[1:]) <= 1


def test_whole_donors_go_to_a_fold():
    obs = of_donors([60, 50, 70, 40, 80, 50, 60, 90])
    split, fold, by, _ = fold_cells(obs, ALL, 4, seed=3)
    assert by == "donor"
    assert (pd.Series(fold).groupby(obs["donor"]).nunique() == 1).all()
    assert set(fold) == {1, 2, 3, 4}
    shares = np.bincount(fold)[1:] / len(obs)
    assert shares.min() > 0.15 and shares.max() < 0.35
    # The cells that stop a training are of all donors that it sees.
    stopping = pd.Series(split == "validation").groupby(obs["donor"]).mean()
    assert stopping.between(0.02, 0.25).all()


def test_folds_by_donor_need_a_donor_each():
    assert fold_cells(of_donors([60] * 5), ALL, 5, 0)[2] == "donor"
    assert fold_cells(of_donors([60] * 4), ALL, 5, 0)[2] == "cell"
    assert fold_cells(of_donors([60] * 5), ALL | {"by": "cell"}, 5, 0)[2] == "cell"
    with pytest.raises(InputError, match=r"has 4 donor\(s\) and each of the 5 folds needs one"):
        fold_cells(of_donors([60] * 4), ALL | {"by": "donor"}, 5, 0)


@pytest.mark.parametrize("obs", [all_reference(400), of_donors([60, 50, 70, 40, 80, 50, 60])])
def test_names_and_seed_decide_the_fold(obs):
    order = np.random.default_rng(0).permutation(len(obs))
    found = fold_cells(obs, ALL, 4, seed=3)
    permuted = fold_cells(obs.iloc[order], ALL, 4, seed=3)
    for whole, part in zip(found[:2], permuted[:2], strict=True):
        np.testing.assert_array_equal(whole[order], part)
    others = [fold_cells(obs, ALL, 4, seed)[1] for seed in (4, 5, 6)]
    assert any((found[1] != other).any() for other in others)


def test_neighbours_in_the_file_fall_into_folds_as_chance_has_it():
    fold = fold_cells(all_reference(2000), ALL, 5, seed=0)[1]
    assert (fold[1:] == fold[:-1]).mean() == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(
    ("obs", "n_folds", "validation", "message"),
    [
        (all_reference(14), 2, 0.25, "only 5 train cells and 6 are needed"),
        (all_reference(20), 5, 0.1, "only 1 validation cells and 2 are needed"),
        # The only large donor cannot train the model of its own fold.
        (of_donors([400, 1, 1, 1]), 4, 0.1, "cells and .* are needed.*or split by cell"),
    ],
)
def test_folds_too_small_to_train_on_are_said(obs, n_folds, validation, message):
    with pytest.raises(InputError, match=message):
        fold_cells(obs, ALL | {"validation": validation}, n_folds, seed=0)


def test_just_enough_cells_for_the_folds_are_enough():
    split, fold, *_ = fold_cells(all_reference(30), ALL, 5, seed=0)
    for held in range(1, 6):
        assert (split[fold != held] == "validation").sum() >= 2
