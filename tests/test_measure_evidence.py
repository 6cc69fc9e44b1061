"""Evidence and the amortization gap: which cells, which groups, what is warned of."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from measure_evidence import by_group, choose_cells, evidence_warnings
from model_inputs import read_model
from model_jobs import measure, read_inputs, train, with_obs
from omics_vae.inference import cell_elbo, importance_weighted_evidence, refine
from simulated_counts import CPU, small_run

# ---- which cells

SPLIT = np.repeat(["query", "train", "validation", "calibration"], [40, 100, 12, 30])
SPLIT = SPLIT[np.random.default_rng(0).permutation(len(SPLIT))]


def test_all_held_out_cells_are_taken_where_they_are_few():
    assert choose_cells(SPLIT, 40, 1).tolist() == np.flatnonzero(SPLIT != "train").tolist()


def test_of_each_split_at_most_so_many_are_taken_and_the_seed_decides():
    chosen = choose_cells(SPLIT, 15, 1)
    assert (np.diff(chosen) > 0).all()
    names, counts = np.unique(SPLIT[chosen], return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        **{"calibration": 15, "query": 15, "validation": 12},
    }
    assert choose_cells(SPLIT, 15, 1).tolist() == chosen.tolist()
    assert choose_cells(SPLIT, 15, 2).tolist() != chosen.tolist()


def test_the_draw_is_of_the_whole_split():
    taken = np.zeros(len(SPLIT))
    for seed in range(300):
        taken[choose_cells(SPLIT, 10, seed)] += 1
    assert (taken[SPLIT == "train"] == 0).all()
    assert (taken[SPLIT == "validation"] > 200).all()
    assert taken[SPLIT == "query"].min() > 40  # 75 are expected


# ---- groups


def test_groups_have_means_and_the_standard_error_of_the_gap():
    cells = pd.DataFrame(
        {
            "sample": pd.Categorical(["b", "a", "b", "b"], categories=["a", "b", "c"]),
            "elbo": [-10.0, -20.0, -12.0, -14.0],
            "elbo_refined": [-9.0, -18.0, -11.0, -10.0],
            "gap": [1.0, 2.0, 1.0, 4.0],
            "log_p": [-8.0, -17.0, -10.0, -9.0],
            "effective_samples": [3.0, 7.0, 5.0, 50.0],
        }
    )
    table = by_group(cells, "sample")
    assert list(table) == [
        *("grouped_by", "group", "n_cells", "elbo", "elbo_refined", "log_p", "gap", "gap_se"),
        "effective_samples",
    ]
    assert table["group"].tolist() == ["a", "b"], "a category without cells is no group"
    assert (table["grouped_by"] == "sample").all()
    assert table["n_cells"].tolist() == [1, 3]
    assert table["elbo"].tolist() == [-20.0, -12.0]
    assert table["gap"].tolist() == [2.0, 2.0]
    assert table["effective_samples"].tolist() == [7.0, 5.0]
    assert np.isnan(table["gap_se"][0])
    assert table["gap_se"][1] == pytest.approx(np.std([1, 1, 4], ddof=1) / np.sqrt(3))


# ---- warnings


@pytest.mark.parametrize(
    ("gap", "for_scores", "expected"),
    [(1.99, False, 0), (2.01, False, 1), (2.01, True, 0)],
)
def test_a_large_gap_is_warned_of_unless_scores_are_refined(gap, for_scores, expected):
    found = evidence_warnings({"gap": gap, "for_scores": for_scores})
    assert len(found) == expected
    for warning in found:
        assert warning.startswith("The encoder loses 2 nats a cell")
        assert warning.endswith(
            "; score the anomalies from refined ones (refine.for_scores: true)."
        )


# ---- the rule

TYPES = np.array(["rare", *["T", "B"] * 209, "T"])  # one cell of the first is in training


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Inputs with cell types, and a model that was trained on them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("inputs")
    types = TYPES.copy()
    types[350] = "lone"
    paths = with_obs(small_run(folder), folder / "told", cell_type=types)
    return paths, train(folder / "train", paths)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, fitted):
    return measure(tmp_path_factory.mktemp("evidence"), *fitted)


def test_every_held_out_cell_has_its_bounds(measured, fitted):
    table = pd.read_parquet(measured["cells"])
    assert list(table) == [
        *("cell_id", "split", "elbo", "elbo_refined", "gap", "log_p", "effective_samples"),
    ]
    assert table["split"].value_counts().to_dict() == {
        **{"calibration": 100, "validation": 60, "query": 60},
    }
    assert (table["gap"] > 0).mean() > 0.6
    np.testing.assert_allclose(table["elbo_refined"] - table["elbo"], table["gap"], atol=1e-6)
    # The evidence lies above both bounds, up to the luck of a few draws.
    assert table["log_p"].mean() > table["elbo_refined"].mean() > table["elbo"].mean()
    assert table["effective_samples"].between(1, 20).all()


def test_the_numbers_are_those_of_the_model(measured, fitted):
    table = pd.read_parquet(measured["cells"])
    paths, fit = fitted
    model, inputs = read_model(fit["weights"], fit["description"], read_inputs(paths))
    held_out = np.flatnonzero(inputs.cells["split"] != "train")
    assert table["cell_id"].tolist() == inputs.cells.index[held_out].tolist()
    data = inputs.data.take(held_out)
    refined = refine(model, data, CPU, 10, 0.05)
    np.testing.assert_allclose(table["elbo"], refined.amortized)
    np.testing.assert_allclose(table["gap"], refined.gap)
    # By other draws of the encoder's posterior, the same but for their luck.
    elbo = cell_elbo(model, data, CPU, 16, seed=99)
    assert table["elbo"].mean() == pytest.approx(elbo.mean, abs=0.2)
    at = refined.embedding
    weighted = importance_weighted_evidence(model, data, CPU, 20, at=at)
    np.testing.assert_allclose(table["log_p"], weighted.log_p)


def test_the_groups_are_splits_samples_and_cell_types(measured):
    groups = pd.read_csv(measured["groups"], sep="\t")
    found = {name: part["group"].tolist() for name, part in groups.groupby("grouped_by")}
    assert found == {
        "split": ["calibration", "query", "validation"],
        "sample": ["S1"],
        "cell_type": ["B", "T", "lone"],
    }
    assert groups.groupby("grouped_by")["n_cells"].sum().eq(220).all()
    lone = groups.set_index("group").loc["lone"]
    assert lone["n_cells"] == 1 and np.isnan(lone["gap_se"])
    cells = pd.read_parquet(measured["cells"])
    query = groups.set_index("group").loc["query"]
    assert query["log_p"] == pytest.approx(cells.loc[cells["split"] == "query", "log_p"].mean())


def test_the_summary_is_of_normal_cells(measured):
    summary = json.loads(measured["summary"].read_text())
    cells = pd.read_parquet(measured["cells"])
    normal = cells[cells["split"] != "query"]
    assert (summary["n_cells"], summary["n_normal"]) == (220, 160)
    for name in ("elbo", "log_p", "gap"):
        assert summary[name] == pytest.approx(normal[name].mean())
    assert summary["gap_se"] == pytest.approx(normal["gap"].std(ddof=1) / np.sqrt(160))
    assert summary["effective_samples"] == pytest.approx(normal["effective_samples"].median())
    assert (summary["samples"], summary["refine_steps"]) == (20, 10)
    assert summary["for_scores"] is False
    assert summary["warnings"] == evidence_warnings(summary)


def test_without_cell_types_there_is_no_such_group(tmp_path, fitted):
    written = measure(tmp_path / "evidence", small_run(tmp_path), fitted[1], cells=10)
    groups = pd.read_csv(written["groups"], sep="\t")
    assert set(groups["grouped_by"]) == {"split", "sample"}
    assert groups["n_cells"].tolist() == [10, 10, 10, 30]


def test_where_the_counts_lie_changes_no_byte(tmp_path, measured, fitted, counts_stay):
    again = measure(tmp_path, *fitted)
    for name, path in measured.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_the_same_seed_gives_the_same_bytes(tmp_path, measured, fitted):
    again = measure(tmp_path, *fitted)
    for name, path in measured.items():
        assert again[name].read_bytes() == path.read_bytes(), name
