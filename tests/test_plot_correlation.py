"""Figure correlation: the heatmaps are the table, in one order; what stands out is marked."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from fake_reasons import write_correlation
from figure_style import ANOMALY, ROLES, save_figure
from plot_correlation import MOST_NAMES, draw, square
from test_figures import outputs, read_json


def tables(folder, n_samples: int = 10) -> list:
    write_correlation(folder, [f"s{i}" for i in range(n_samples)])
    run = folder / "correlation"
    samples = pd.read_csv(run / "samples.tsv", sep="\t", dtype=str)
    return [pd.read_parquet(run / "pairs.parquet"), samples, read_json(run / "summary.json")]


def heatmaps(figure) -> list[np.ndarray]:
    drawn = [np.asarray(image.get_array()) for ax in figure.axes for image in ax.get_images()]
    return [image for image in drawn if image.ndim == 2]


def test_both_heatmaps_are_the_pairs_in_the_order_of_the_samples(tmp_path):
    pairs, samples, summary = tables(tmp_path)
    figure, table, _ = draw(pairs, samples, summary, set())
    before, after = heatmaps(figure)[:2]
    names = list(samples["cell_id"])
    for row in pairs.itertuples():
        i, j = names.index(row.sample_1), names.index(row.sample_2)
        assert before[i, j] == before[j, i] == row.before
        assert after[i, j] == after[j, i] == row.after
    # Batches lie side by side, so that they are blocks.
    np.testing.assert_array_equal(before[:5, 5:], -0.5)
    assert (np.diag(before) == 1).all() and (np.diag(after) == 1).all()
    shown = table[table["panel"] == "a, b"]
    np.testing.assert_array_equal(shown["after"], pairs["after"])


def test_the_bars_tell_role_batch_and_aberrant_samples(tmp_path):
    pairs, samples, summary = tables(tmp_path)
    figure, _, _ = draw(pairs, samples, summary, {"s3"})
    bars = np.asarray(figure.axes[0].get_images()[0].get_array())
    assert bars.shape == (3, 10, 3)
    np.testing.assert_allclose(bars[0], [to_rgb(ROLES["query"])] * 10)
    assert len(np.unique(bars[1], axis=0)) == 2 and (bars[1][:5] == bars[1][0]).all()
    is_marked = (bars[2] == to_rgb(ANOMALY)).all(1)
    assert samples.loc[is_marked, "cell_id"].tolist() == ["s3"]
    words = [text.get_text() for ax in figure.axes if ax.get_legend()
             for text in ax.get_legend().get_texts()]  # fmt: skip
    assert "aberrant (n = 1)" in words and "one (n = 5)" in words


def test_the_words_for_who_cannot_see_it_hold_the_means_within_and_between(tmp_path):
    _, _, alt = draw(*tables(tmp_path), set())
    assert "median size is 0.50, and 0.01 of what the model's expectation leaves over" in alt
    assert "Samples alike in batch correlate by 0.60 before and 0.01 after, others by -0.50" in alt


def test_the_histogram_counts_all_pairs(tmp_path):
    _, table, _ = draw(*tables(tmp_path), set())
    c = table[table["panel"] == "c"].set_index("from")
    assert c["before"].sum() == pytest.approx(1) and c["after"].sum() == pytest.approx(1)
    assert c.loc[-0.5, "before"] == pytest.approx(25 / 45)


def test_a_square_has_each_pair_twice():
    pairs = pd.DataFrame({"sample_1": ["a", "a", "b"], "sample_2": ["b", "c", "c"]})
    found = square(pairs.assign(r=[0.1, 0.2, 0.3]), ["c", "a", "b"], "r")
    np.testing.assert_array_equal(found, [[1, 0.2, 0.3], [0.2, 1, 0.1], [0.3, 0.1, 1]])


@pytest.mark.parametrize("n_samples", [1, 2, MOST_NAMES, MOST_NAMES + 1, 300])
def test_any_number_of_samples_fits_two_columns(n_samples, tmp_path):
    given = tables(tmp_path, n_samples)
    figure, *rest = draw(*given, set())
    save_figure(figure, *rest, outputs(tmp_path, "correlation"))
    with Image.open(tmp_path / "correlation.png") as image:
        assert image.width / 300 * 25.4 == pytest.approx(183, abs=0.2)
        assert image.height / 300 * 25.4 < 247
    named = [text.get_text() for text in figure.axes[2].get_yticklabels()]
    assert named == (list(given[1]["cell_id"]) if n_samples <= MOST_NAMES else [])
