"""The curve of rate and distortion: its envelope, its columns, its warning."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import ConvexHull

from run_script import run_script
from trace_rate_distortion import curve, curve_warnings, lower_envelope


def envelope_by_scipy(points: np.ndarray) -> set[int]:
    """The corners of the hull that no other point beats in both, on the lower left."""
    corners = ConvexHull(points).vertices  # counter-clockwise
    start = np.lexsort((points[corners, 1], points[corners, 0]))[0]
    around = np.roll(corners, -start)
    end = np.lexsort((points[corners, 0], points[corners, 1]))[0]
    return set(around[: int(np.flatnonzero(around == corners[end])[0]) + 1].tolist())


@pytest.mark.parametrize("seed", range(20))
def test_the_envelope_is_the_lower_left_of_the_convex_hull(seed):
    points = np.random.default_rng(seed).random((3 + 2 * seed, 2))
    found = lower_envelope(points[:, 0], points[:, 1])
    assert found.dtype == bool
    assert set(np.flatnonzero(found).tolist()) == envelope_by_scipy(points)


def test_a_point_that_another_beats_in_both_is_off():
    rate, distortion = np.array([1.0, 2.0, 3.0, 2.5]), np.array([9.0, 5.0, 4.0, 5.5])
    assert lower_envelope(rate, distortion).tolist() == [True, True, True, False]
    # The order of the points does not matter.
    order = np.array([3, 1, 0, 2])
    assert lower_envelope(rate[order], distortion[order]).tolist() == [False, True, True, True]


def test_a_point_that_a_mixture_of_two_others_beats_is_off():
    rate = np.array([0.0, 1.0, 2.0])
    assert lower_envelope(rate, np.array([2.0, 1.1, 0.0])).tolist() == [True, False, True]
    assert lower_envelope(rate, np.array([2.0, 0.9, 0.0])).tolist() == [True, True, True]


def test_few_points_and_equal_ones():
    assert lower_envelope(np.array([1.0]), np.array([1.0])).tolist() == [True]
    assert lower_envelope(np.array([1.0, 2.0]), np.array([1.0, 1.0])).tolist() == [True, False]
    assert lower_envelope(np.array([1.0, 1.0]), np.array([1.0, 2.0])).tolist() == [True, False]
    assert lower_envelope(np.full(3, 1.0), np.full(3, 1.0)).sum() == 1


def summary(beta: float, rate: float, distortion: float) -> dict:
    return {
        **{"beta": beta, "rate": rate, "distortion": distortion, "elbo": -rate - distortion},
        **{"active_units": 3, "mutual_information": 0.9 * rate},
        **{"n_validation": 60, "n_train": 200, "warnings": ["told elsewhere"]},
    }


def cells_of(*summaries: dict, spread: float = 0.0) -> list[pd.DataFrame]:
    """Sixty cells a beta, some far harder than others, that differ by the betas' means.

    ``spread``: half of the range of what each further beta gains on single cells.
    """
    hard = np.linspace(-500.0, 500.0, 60)
    return [
        pd.DataFrame(
            {
                "reconstruction": hard
                - one["distortion"]
                + spread * (i > 0) * np.sin(np.arange(60)),
                "kl": one["rate"],
            }
        )
        for i, one in enumerate(summaries)
    ]


SUMMARIES = [summary(1, 10.0, 90.0), summary(0.25, 20.0, 84.0), summary(4, 11.0, 95.0)]


def test_the_table_has_a_row_a_beta_in_their_order():
    table = curve(SUMMARIES, cells_of(*SUMMARIES), 1)
    assert list(table) == [
        *("beta", "rate", "distortion", "elbo", "gain", "gain_se", "active_units"),
        *("mutual_information", "on_envelope", "chosen"),
    ]
    assert table["gain"].tolist() == pytest.approx([-4.0, 0.0, -6.0])
    assert table["beta"].tolist() == [0.25, 1.0, 4.0]
    assert table["rate"].tolist() == [20.0, 10.0, 11.0]
    assert table["on_envelope"].tolist() == [True, True, False]
    assert table["chosen"].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("gain", "expected"), [(1.9, 0), (2.1, 1)], ids=["within two errors", "beyond"]
)
def test_a_better_beta_is_named_when_it_gains_more_than_two_standard_errors(gain, expected):
    pair = [summary(1, 10.0, 90.0), summary(0.25, 20.0, 80.0)]
    cells = cells_of(*pair, spread=1.0)
    difference = cells[1]["reconstruction"] - cells[0]["reconstruction"] - 10.0
    se = difference.std(ddof=1) / np.sqrt(60)
    cells[1]["reconstruction"] += gain * se - difference.mean()
    table = curve(pair, cells, 1)
    np.testing.assert_allclose(table["gain"], [gain * se, 0.0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(table["gain_se"], [se, 0.0], rtol=1e-9, atol=1e-9)
    found = curve_warnings(table)
    assert (
        found
        == [
            f"beta = 0.25 has a held-out ELBO {gain * se:.2g} ± {se:.1g} nats a cell above that of "
            "the chosen 1; consider train.beta: 0.25."
        ]
        * expected
    )


def test_the_best_beta_is_not_warned_of():
    cells = cells_of(*SUMMARIES)
    assert curve_warnings(curve(SUMMARIES, cells, 1)) == []
    assert curve_warnings(curve(SUMMARIES[:1], cells[:1], 1)) == []
    assert len(curve_warnings(curve(SUMMARIES, cells, 4))) == 1


def test_the_rule_writes_table_and_summary(tmp_path):
    paths, cells = [], cells_of(*SUMMARIES, spread=1.0)
    for one, table in zip(SUMMARIES, cells, strict=True):
        paths.append(str(tmp_path / f"{one['beta']}.json"))
        (tmp_path / f"{one['beta']}.json").write_text(json.dumps(one))
        table.to_parquet(tmp_path / f"{one['beta']}.parquet")
    output = {"curve": "curve.tsv", "summary": "summary.json"}
    validations = [path.replace(".json", ".parquet") for path in paths]
    given = {"summaries": paths, "validations": validations}
    written = run_script("trace_rate_distortion", tmp_path, given, output, {"beta": 1})
    table = pd.read_csv(written["curve"], sep="\t")
    expected = curve(SUMMARIES, cells, 1)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert json.loads(written["summary"].read_text()) == {
        "betas": [0.25, 1.0, 4.0],
        "chosen": 1,
        "n_validation": 60,
        "warnings": [],
    }
