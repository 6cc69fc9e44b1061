"""The design: columns of the metadata as numbers, and what a column may not be."""

import json

import numpy as np
import pandas as pd
import pytest

from design import Design, check_latent, make_design
from job import InputError

ASKED = {
    "covariates": [],
    "continuous_covariates": [],
    "dispersion": "gene",
    "library_size": "observed",
}
SPLIT = ["train", "train", "train", "train", "validation", "calibration", "query", "query"]


def cells(**columns) -> pd.DataFrame:
    """Eight cells, four of them of the training."""
    table = pd.DataFrame({"split": SPLIT}, index=[f"cell{i}" for i in range(len(SPLIT))])
    return table.assign(**columns)


def design(obs: pd.DataFrame, **asked) -> Design:
    return make_design(obs, ASKED | asked)


def refused(obs: pd.DataFrame, **asked) -> str:
    with pytest.raises(InputError) as caught:
        design(obs, **asked)
    return str(caught.value)


BATCHES = cells(batch=["b", "a", "b", "a", "a", "b", "a", "b"])


def test_nothing_asked_for_is_no_column_and_one_batch():
    made = design(BATCHES)
    assert made == Design({}, {}, [])
    assert (made.n_covariates, made.n_batches) == (0, 1)
    matrix = made.covariates(BATCHES)
    assert matrix.shape == (8, 0) and matrix.dtype == np.float32
    assert made.batch_codes(BATCHES).tolist() == [0] * 8


def test_a_categorical_covariate_has_a_column_a_level_in_sorted_order():
    made = design(BATCHES, covariates=["batch"])
    assert made.categorical == {"batch": ["a", "b"]}
    assert made.n_covariates == 2
    expected = [[0, 1], [1, 0], [0, 1], [1, 0], [1, 0], [0, 1], [1, 0], [0, 1]]
    matrix = made.covariates(BATCHES)
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.dtype == np.float32


def test_levels_that_are_numbers_or_categories_or_booleans_are_levels_all_the_same():
    numbers = cells(lane=[2, 10, 2, 10, 2, 10, 2, 10])
    assert design(numbers, covariates=["lane"]).categorical == {"lane": ["10", "2"]}
    boolean = cells(frozen=[True, False] * 4)
    assert design(boolean, covariates=["frozen"]).categorical == {"frozen": ["False", "True"]}
    # A category without a cell is no level.
    unused = pd.Categorical(list("abababab"), categories=["c", "b", "a"])
    made = design(cells(batch=unused), covariates=["batch"])
    assert made.categorical == {"batch": ["a", "b"]}
    np.testing.assert_array_equal(made.covariates(cells(batch=unused))[:, 0], [1, 0] * 4)


def test_a_continuous_covariate_is_standardised_by_the_training_cells():
    age = [1.0, 2.0, 3.0, 6.0, 3.0, 100.0, 1000.0, -4.0]
    made = design(cells(age=age), continuous_covariates=["age"])
    mean, sd = made.continuous["age"]
    assert (mean, sd) == pytest.approx((3.0, np.sqrt(3.5)))
    matrix = made.covariates(cells(age=age))
    np.testing.assert_allclose(matrix[:, 0], (np.array(age) - 3.0) / np.sqrt(3.5), rtol=1e-6)
    assert matrix[:4].mean() == pytest.approx(0.0, abs=1e-6)
    assert matrix[:4].std() == pytest.approx(1.0, rel=1e-6)


def test_numbers_of_the_sample_table_arrive_as_text():
    text = ["31", "42.5", "31", "42.5", "50", "1e1", "31", "-3"]
    numbers = cells(age=np.array(text, dtype=float))
    expected = design(numbers, continuous_covariates=["age"]).covariates(numbers)
    for column in (text, pd.Categorical(text)):
        obs = cells(age=column)
        made = design(obs, continuous_covariates=["age"])
        np.testing.assert_array_equal(made.covariates(obs), expected)


def test_columns_come_in_the_order_asked_for_the_categorical_first():
    obs = cells(
        batch=list("abababab"), chemistry=list("vwxvwxvw"), age=range(8), dose=[1, 2, 4, 8] * 2
    )
    made = design(obs, covariates=["chemistry", "batch"], continuous_covariates=["dose", "age"])
    assert list(made.categorical) == ["chemistry", "batch"]
    assert list(made.continuous) == ["dose", "age"]
    assert made.n_covariates == 3 + 2 + 2
    matrix = made.covariates(obs)
    assert matrix.shape == (8, 7)
    np.testing.assert_array_equal(matrix[:, :3].argmax(1), [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(matrix[:, 3:5].argmax(1), [0, 1] * 4)
    np.testing.assert_allclose(matrix[:4, 5:].mean(0), 0.0, atol=1e-6)
    # Of some of the cells: the same rows.
    np.testing.assert_array_equal(made.covariates(obs.iloc[[6, 1]]), matrix[[6, 1]])


def test_batches_are_told_apart_where_dispersion_or_library_size_ask_for_it():
    assert design(BATCHES).batches == []
    assert design(BATCHES, covariates=["batch"]).batches == []
    for asked in ({"dispersion": "gene_batch"}, {"library_size": "latent"}):
        made = design(BATCHES, **asked)
        assert made.batches == ["a", "b"]
        assert made.n_batches == 2
        assert made.n_covariates == 0
        codes = made.batch_codes(BATCHES)
        assert codes.tolist() == [1, 0, 1, 0, 0, 1, 0, 1]
        assert codes.dtype == np.int64


def test_a_latent_library_size_needs_no_batch_nor_several():
    assert design(cells(), library_size="latent").n_batches == 1
    one = cells(batch=["only"] * 8)
    made = design(one, library_size="latent")
    assert made.batches == ["only"]
    assert made.batch_codes(one).tolist() == [0] * 8


def test_a_design_survives_json():
    obs = BATCHES.assign(age=np.arange(8) / 3)
    made = design(obs, covariates=["batch"], continuous_covariates=["age"], dispersion="gene_batch")
    again = Design(**json.loads(json.dumps(made.as_json())))
    assert again == made
    np.testing.assert_array_equal(again.covariates(obs), made.covariates(obs))
    np.testing.assert_array_equal(again.batch_codes(obs), made.batch_codes(obs))


# ---- what a column may not be

FAULTS = {
    "a column of the files that the sample table does not use": (
        # Such a column comes as batch_input, see import_counts.
        (cells(batch_input=list("abababab")), {"covariates": ["batch"]}),
        "train.covariates: batch: the files have such a column, which the sample table does not "
        "use; give the table a column batch with obs:batch in it",
    ),
    "cells without a value of a covariate": (
        (cells(x=["1", "2", "1", "", "1", "2", "", "1"]), {"covariates": ["x"]}),
        "train.covariates: x: 2 cells have no value (first cell3); fill the column or leave it out",
    ),
    "a number that all training cells share": (
        (cells(age=[5, 5, 5, 5, 5, 6, 7, 8]), {"continuous_covariates": ["age"]}),
        "train.continuous_covariates: age: all training cells have the value 5, so it says "
        "nothing; remove it",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_column_that_cannot_be_used_gives_one_line(name):
    (obs, asked), expected = FAULTS[name]
    assert refused(obs, **asked) == expected


@pytest.mark.parametrize("key", ["covariates", "continuous_covariates"])
def test_a_column_that_is_not_there(key):
    assert refused(cells(batch="a", age=1), **{key: ["bacth"]}) == (
        f"train.{key}: bacth: no such column in the metadata; add it to the sample table, or take "
        "one of age, batch, split"
    )


def test_a_batch_of_the_files_that_the_sample_table_does_not_use():
    (obs, _), expected = FAULTS["a column of the files that the sample table does not use"]
    said = refused(obs, dispersion="gene_batch")
    assert said == expected.replace("train.covariates", "train.dispersion: gene_batch")


@pytest.mark.parametrize("hole", [None, np.nan, ""])
@pytest.mark.parametrize("key", ["covariates", "continuous_covariates"])
def test_a_column_with_gaps(key, hole):
    values = ["1", "2", "1", hole, "1", "2", hole, "1"]
    expected = FAULTS["cells without a value of a covariate"][1].replace("covariates", key)
    assert refused(cells(x=values), **{key: ["x"]}) == expected
    assert refused(cells(x=pd.Categorical(values)), **{key: ["x"]}) == expected


def test_a_column_of_one_level():
    assert refused(cells(batch="a"), covariates=["batch"]) == (
        "train.covariates: batch: all cells have the value a, so it says nothing; remove it"
    )
    message = refused(cells(batch="a"), dispersion="gene_batch")
    assert message.startswith(
        "train.dispersion: gene_batch: batch: all cells have the value a, so it says nothing; "
    )


WHERE = {"validation": 4, "calibration": 5, "query": 7}


@pytest.mark.parametrize("split", WHERE)
@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"covariates": ["batch"]}, "train.covariates"),
        ({"dispersion": "gene_batch"}, "train.dispersion: gene_batch"),
        ({"library_size": "latent"}, "train.library_size: latent"),
    ],
)
def test_a_level_that_no_training_cell_shows(asked, key, split):
    batch = list("abababab")
    batch[WHERE[split]] = "new"
    assert refused(cells(batch=batch), **asked) == (
        f"{key}: batch: new occurs in {split} cells and in no training cell, so the model cannot "
        "know its effect; bring reference cells of it, leave out those samples, or remove batch "
        "from the model"
    )


def test_a_new_level_is_told_before_one_that_training_alone_lacks_variety():
    """One level in training and another in the query: there are two, and one is unknown."""
    assert "new occurs in query cells" in refused(
        cells(batch=["a"] * 6 + ["new"] * 2), covariates=["batch"]
    )


def test_of_many_new_levels_three_are_named():
    obs = pd.concat([cells(batch=list("aabbabab")), cells(batch=list("aabbabab"))])
    obs["split"] = ["train"] * 8 + ["query"] * 8
    obs.iloc[8:13, obs.columns.get_loc("batch")] = ["z", "y", "x", "w", "v"]
    assert "batch: v, w, x occurs in query cells" in refused(obs, covariates=["batch"])


@pytest.mark.parametrize("bad", ["old", "inf", "1,5"])
def test_a_continuous_column_that_holds_no_number(bad):
    values = ["1", "2", "3", "4", "5", bad, "7", "8"]
    assert refused(cells(age=values), continuous_covariates=["age"]) == (
        f"train.continuous_covariates: age: {bad} is no finite number; correct the column or list "
        "it under train.covariates"
    )


def test_all_faults_are_told_at_once():
    found = refused(
        cells(sex="f"), covariates=["sex", "tissue"], continuous_covariates=["age"]
    ).splitlines()
    assert [line.split(": ")[1] for line in found] == ["sex", "tissue", "age"]


@pytest.mark.parametrize(("n_latent", "is_right"), [(12, True), (13, False)])
def test_the_latent_space_has_no_more_dimensions_than_genes(n_latent, is_right):
    if is_right:
        check_latent(n_latent, 12)
        return
    with pytest.raises(InputError, match=r"train\.n_latent: 13 latent dimensions for 12 genes; "):
        check_latent(n_latent, 12)


def test_every_message_is_one_line():
    for asked in ({"covariates": ["x"]}, {"continuous_covariates": ["x"]}):
        assert "\n" not in refused(cells(), **asked)
