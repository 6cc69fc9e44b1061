"""Figures show what their tables hold, whatever the tables are."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from PIL import Image
from scipy.stats import kstest

import plot_anomalies
import plot_check
import plot_genes
import plot_latent
import plot_library_size
import plot_patterns
import plot_pruning
import plot_qc
import plot_rate_distortion
import plot_training
from fake_reasons import METHODS, write_check
from fake_run import write_fake_run, write_optional_stages
from figure_style import MAX_ROWS, ROLES, category_colours, plain_number, save_figure, shorten
from obs_columns import read_obs

MM_PER_POINT = 25.4 / 72


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = write_fake_run(tmp_path_factory.mktemp("fake_run"), n_cells=200)
    return write_check(write_optional_stages(folder))


def read_json(path):
    return pd.read_json(path, typ="series").to_dict()


def read_donors(run) -> pd.DataFrame:
    return read_obs(run / "preprocess/counts.h5ad", ["donor"])


def read_patterns(run) -> list[pd.DataFrame]:
    folder = run / "patterns"
    patterns, markers, sizes = (
        pd.read_csv(folder / f"{name}.tsv", sep="\t") for name in ("patterns", "markers", "sizes")
    )
    residuals, cells = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("residuals", "cells")
    )
    splits = pd.read_csv(run / "preprocess/splits.tsv", sep="\t")
    return [patterns, markers, residuals, sizes, cells, splits]


def read_genes(run) -> list:
    folder = run / "genes"
    hits, top = (pd.read_parquet(folder / f"{name}.parquet") for name in ("genes", "top"))
    density, outliers = (
        pd.read_csv(folder / f"{name}.tsv", sep="\t") for name in ("density", "outliers")
    )
    return [hits, density, top, outliers, read_json(folder / "summary.json")]


def draw_all(run, observations: str = "cells") -> dict:
    """Each figure as (figure, table, alt), from the files of a run; as its rule draws it.

    tests/test_publication.py holds each to the publication rules.
    """
    qc = pd.concat([pd.read_parquet(p) for p in sorted(run.glob("preprocess/*.qc.parquet"))])
    summaries = sorted(run.glob("preprocess/donor*.summary.json"))
    limits = {p.name.removesuffix(".summary.json"): plot_qc.read_limits(p) for p in summaries}
    sizes = pd.read_parquet(run / "library_size/library_size.parquet")
    scored = pd.read_parquet(run / "anomaly/cells.parquet")
    cells = plot_anomalies.with_donors(scored, read_donors(run))
    train, prune = run / "train/seed1", run / "prune/seed1"
    obs = read_obs(
        run / "preprocess/counts.h5ad", ["sample", "role", "split", "cell_type", "not there"]
    )
    umap = pd.read_parquet(run / "embed/seed1/umap.parquet")
    drawn = {
        "qc": plot_qc.draw(qc.reset_index(drop=True), limits, observations),
        "library_size": plot_library_size.draw(sizes, observations),
        "training": plot_training.draw(
            pd.read_parquet(train / "history.parquet"),
            pd.read_parquet(train / "kl.parquet"),
            read_json(train / "summary.json"),
            observations,
        ),
        "pruning": plot_pruning.draw(
            pd.read_parquet(prune / "evidence.parquet"),
            pd.read_csv(prune / "elbo.tsv", sep="\t"),
            plot_pruning.read_thresholds(read_json(prune / "summary.json")),
            observations,
        ),
        "latent": plot_latent.draw(plot_latent.join_cells(umap, obs, scored), observations),
        "anomalies": plot_anomalies.draw(
            cells, read_json(run / "anomaly/summary.json"), observations
        ),
        "patterns": plot_patterns.draw(*read_patterns(run), observations),
        "genes": plot_genes.draw(*read_genes(run)),
    }
    if (run / "check").exists():
        draws = pd.read_parquet(run / "check/check.parquet")
        drawn["check"] = plot_check.draw(draws, read_json(run / "check/summary.json"))
    if (run / "rate_distortion").exists():
        drawn["rate_distortion"] = plot_rate_distortion.draw(
            pd.read_csv(run / "rate_distortion/curve.tsv", sep="\t"),
            read_json(run / "rate_distortion/summary.json"),
            observations,
        )
    return drawn


def outputs(folder, name):
    kinds = {"pdf": "pdf", "svg": "svg", "png": "png", "table": "tsv", "alt": "txt"}
    return SimpleNamespace(**{k: folder / f"{name}.{end}" for k, end in kinds.items()})


@pytest.fixture(scope="session")
def drawn(run):
    return draw_all(run)


# ---- quality control, library size


def points(ax) -> np.ndarray:
    """Places of all points of a panel; those of the legend are sets of none."""
    sets = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    return np.concatenate(sets)


def test_qc_draws_every_cell_of_its_source_data_once(drawn):
    figure, table, _ = drawn["qc"]
    cells = table[table["panel"] == "cells"]
    for ax, quantity in zip(figure.axes, plot_qc.QUANTITIES, strict=True):
        np.testing.assert_allclose(np.sort(points(ax)[:, 0]), np.sort(cells[quantity]))


def test_dropped_cells_have_a_mark_of_their_own(run):
    qc = pd.read_parquet(run / "preprocess/donor1.qc.parquet").head(6).reset_index(drop=True)
    figure, _, _ = plot_qc.draw(qc.assign(kept=[True, False] * 3), {})
    kept, dropped = (c.get_paths()[0] for c in figure.axes[0].collections[:2])
    assert len(kept.vertices) != len(dropped.vertices)


def test_limits_that_are_off_are_not_drawn(run):
    limits = plot_qc.read_limits(run / "preprocess/donor1.summary.json")
    assert limits == {"min_counts": 500.0, "max_pct_mito": 9.0}


def test_input_without_mitochondrial_genes_has_no_panel_of_them(run):
    qc = pd.read_parquet(run / "preprocess/donor1.qc.parquet").assign(pct_mito=np.nan, kept=True)
    figure, _, alt = plot_qc.draw(qc, {})
    assert [ax.get_xlabel() for ax in figure.axes] == ["Counts per cell", "Genes per cell"]
    assert "mitochondrial" not in alt


def test_of_too_many_samples_those_that_lost_most_are_shown():
    n = 60
    qc = pd.DataFrame({"sample": np.repeat([f"s{i}" for i in range(n)], 2), "cell": "c"})
    qc["total_counts"], qc["n_genes"], qc["pct_mito"], qc["reasons"] = 1000, 500, 1.0, ""
    qc["kept"] = (qc.index % 2 == 0) | (qc.index < 2 * 50)
    figure, table, alt = plot_qc.draw(qc, {})
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(names) == MAX_ROWS
    assert sum("1 of 2 kept" in name for name in names) == 10
    assert figure.legends[0].get_title().get_text() == "40 of 60 samples, those with fewest kept"
    assert len(table) == 2 * n
    assert "110 were kept, 10 dropped. " in alt and alt.endswith("s50: 50 %.")


def test_library_sizes_of_a_sample_of_both_roles_are_drawn_by_the_role_of_each_cell():
    sizes = pd.DataFrame({"cell_id": list("abcd"), "sample": ["NA", "NA", "NA", "two"]})
    sizes["library_size"] = [900.0, 1000, 1100, 1200]
    sizes["role"] = ["reference", "query", "query", "query"]
    figure, table, _ = plot_library_size.draw(sizes)
    labels = {text.get_text() for text in figure.axes[1].get_legend().get_texts()}
    assert labels == {"reference (n = 1)", "query (n = 3)"}
    assert table["role"].tolist() == sizes["role"].tolist()
    drawn = figure.axes[0].collections[0]
    colour = dict(zip(drawn.get_offsets()[:, 0], map(to_hex, drawn.get_facecolors()), strict=True))
    assert colour == {
        size: ROLES[role].lower()
        for size, role in zip(sizes["library_size"], sizes["role"], strict=True)
    }


def test_leaves_no_setting_behind(run):
    before = dict(matplotlib.rcParams)
    draw_all(run)
    assert dict(matplotlib.rcParams) == before


def test_wilson_interval_agrees_with_statsmodels():
    from statsmodels.stats.proportion import proportion_confint

    k, n = np.array([0, 1, 7, 50, 50]), np.array([10, 10, 50, 100, 50])
    low, high = plot_anomalies.wilson_interval(k, n)
    expected = proportion_confint(k, n, method="wilson")
    np.testing.assert_allclose(low, expected[0], atol=1e-12)
    np.testing.assert_allclose(high, expected[1], atol=1e-12)


def test_quantile_bands_hold_for_uniform_p_values():
    p_values = np.sort(np.random.default_rng(0).random((40_000, 4)), axis=1)
    bands = plot_anomalies.quantiles(p_values[0])
    for side, expected in (("low", 0.025), ("high", 0.975)):
        below = (p_values <= bands[side].to_numpy()).mean(axis=0)
        np.testing.assert_allclose(below, expected, atol=0.004)


def test_largest_categories_keep_their_names():
    values = pd.Series([f"s{i:02d}" for i in range(30) for _ in range(30 - i)])
    colours = category_colours(values, most=12)
    assert list(colours) == [f"s{i:02d}" for i in range(11)] + ["other"]
    assert len(set(colours.values())) == 12


def test_name_that_looks_like_a_formula_is_printed_as_it_is():
    assert shorten("$x_1$") == r"\$x_1\$"
    assert len(shorten("a" * 80)) == 22


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_500_000, "1.5 M"),
        (20_000, "20,000"),
        (0.5, "0.5"),
        (0, "0"),
        (-3, "−3"),
        (1e-5, "0.00001"),
    ],
)
def test_numbers_have_no_exponent(value, text):
    assert plain_number(value) == text


def test_names_are_in_the_order_of_their_numbers():
    assert list(category_colours(pd.Series(["donor10", "donor9", "control"]))) == [
        *("control", "donor9", "donor10")
    ]


# ---- anomalies, latent


def scored_cells(**columns) -> pd.DataFrame:
    cells = pd.DataFrame(columns)
    defaults = {"split": "calibration", "trimmed": False, "calibrated_by": "", "donor": ""}
    return cells.assign(**{k: v for k, v in (defaults | {"sample": "s"}).items() if k not in cells})


def test_calibration_cells_are_ranked_among_those_of_other_donors():
    cells = scored_cells(score=[1.0, 2, 3, 4], donor=["a", "a", "b", "b"], p_value=0.5)
    # Both of a lie below both of b.
    assert plot_anomalies.of_others(cells).tolist() == [1, 1, 1 / 3, 1 / 3]
    by_sample = cells.assign(donor="", sample=cells["donor"])
    assert plot_anomalies.of_others(by_sample).tolist() == [1, 1, 1 / 3, 1 / 3]


def test_calibration_cells_of_one_sample_keep_their_p_value():
    cells = scored_cells(score=[1.0, 2, 3], p_value=[0.75, 0.5, 0.25])
    cells.loc[1, "trimmed"] = True
    assert plot_anomalies.of_others(cells).tolist() == [0.75, 0.25]


def test_p_values_are_uniform_where_donors_are_alike():
    rng = np.random.default_rng(0)
    donors = np.repeat(list("abcd"), 500)
    cells = scored_cells(score=rng.normal(size=2000), donor=donors, p_value=np.nan)
    assert kstest(plot_anomalies.of_others(cells), "uniform").pvalue > 0.01
    shifted = cells.assign(score=cells["score"] + (cells["donor"] == "a"))
    # Its odd cells are odder than those of all others, which theirs are not.
    assert (plot_anomalies.of_others(cells) <= 0.05).mean() < 0.06
    assert (plot_anomalies.of_others(shifted) <= 0.05).mean() > 0.07


def test_donors_have_a_panel_unless_they_are_the_samples():
    cells = scored_cells(sample=["s", "s", "t"], donor=["a", "b", ""])
    assert plot_anomalies.has_donors(cells)
    assert not plot_anomalies.has_donors(cells.assign(donor=["a", "a", "b"]))
    assert not plot_anomalies.has_donors(cells.assign(donor=""))


def test_donors_of_the_reference_alone_have_no_panel(run):
    cells = pd.read_parquet(run / "anomaly/cells.parquet")
    number = np.where(np.arange(len(cells)) % 3, "a", "b")
    cells["donor"] = np.where(cells["split"] == "query", "", number)
    _, table, _ = plot_anomalies.draw(cells, read_json(run / "anomaly/summary.json"))
    assert set(table["panel"]) == set("abcd")


def test_anomalies_of_each_donor_have_their_interval(run, drawn):
    cells = pd.read_parquet(run / "anomaly/cells.parquet")
    donor = pd.Series(np.where(np.arange(len(cells)) % 3, "a", "b"), cells["cell_id"], name="donor")
    cells = plot_anomalies.with_donors(cells, donor.drop(donor.index[0]).reset_index())
    assert cells["donor"].iloc[0] == ""
    figure, table, alt = plot_anomalies.draw(cells, read_json(run / "anomaly/summary.json"))
    query = cells[(cells["split"] == "query") & (cells["donor"] != "")]
    shown = table[table["panel"] == "e"].set_index("donor")
    assert shown["n_query"].to_dict() == query["donor"].value_counts().to_dict()
    ax = panel_titled(figure, "Flagged in each donor")
    (bars,) = (c for c in ax.containers if isinstance(c, ErrorbarContainer))
    ends = np.array([segment[:, 0] for segment in bars.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, 100 * shown[["low", "high"]])
    assert "Of 2 donors" in alt


def test_anomalies_draw_their_source_data(run, drawn):
    figure, table, _ = drawn["anomalies"]
    of = {letter: table[table["panel"] == letter] for letter in "abcd"}
    cells = pd.read_parquet(run / "anomaly/cells.parquet")
    assert set(of["c"]["cell_id"]) == set(cells["cell_id"])
    steps = {patch.get_label().split(" (")[0]: patch for patch in figure.axes[0].patches}
    for use, patch in steps.items():
        share = of["a"].loc[of["a"]["use"] == use, "share"]
        np.testing.assert_allclose(patch.get_data().values, 100 * share)
    assert set(steps) == {"query", "calibration"}
    quantiles = of["b"][["expected", "observed"]].to_numpy()
    np.testing.assert_allclose(points(figure.axes[1]), quantiles)
    depth = points(figure.axes[2])
    shown = of["c"][["library_size", "score"]].to_numpy()
    np.testing.assert_allclose(depth[np.argsort(depth[:, 0])], shown[np.argsort(shown[:, 0])])


def test_latent_draws_every_cell_on_each_map(drawn):
    figure, table, _ = drawn["latent"]
    maps = [ax for ax in figure.axes if ax.get_xlabel() == "UMAP 1"]
    titles = [ax.get_title(loc="left").split("  ")[1].split(" (")[0] for ax in maps]
    assert titles == ["Cell type, as the input names it", "Sample", "Use of the cell",
                      "Anomaly score"]  # fmt: skip
    for ax in maps:
        at = points(ax)
        np.testing.assert_allclose(np.sort(at[:, 0]), np.sort(table["umap_1"]))


def test_one_sample_without_types_still_has_four_maps(run):
    cells = pd.DataFrame({"sample": ["one", "one"]})
    assert plot_latent.panels_of(cells) == [["use", "score"], ["p_value", "sample"]]


def test_numbers_on_the_map_keep_apart_and_off_small_categories():
    names = pd.Series(["big"] * 30 + ["near"] * 20 + ["far"] * 10 + ["small"] * 3)
    x = np.repeat([0.0, 0.01, 1.0, 0.5], [30, 20, 10, 3])
    cells = pd.DataFrame({"umap_1": x, "umap_2": x})
    places = plot_latent.number_places(cells, names, {name: 1 for name in set(names)})
    assert set(places) == {"big", "far"}


# ---- training, pruning, rate and distortion


def panel_titled(figure, title):
    return next(ax for ax in figure.axes for at in ("left", "center") if title in ax.get_title(at))


def test_training_shows_how_much_of_the_latent_space_is_used(run, drawn):
    figure, table, _ = drawn["training"]
    history = pd.read_parquet(run / "train/seed1/history.parquet")
    information, units = [
        line for ax in figure.axes for line in ax.get_lines() if line.get_label() in USE
    ]
    np.testing.assert_allclose(information.get_ydata(), history["mutual_information"])
    np.testing.assert_allclose(units.get_ydata(), history["active_units"])
    # Each on an axis of its own, which starts at 0.
    assert information.axes is not units.axes
    assert information.axes.get_ylim()[0] == units.axes.get_ylim()[0] == 0
    assert {"mutual_information", "active_units"} <= set(table)


USE = ("mutual information", "active units")


def test_a_collapsed_training_is_drawn(run):
    train = run / "train/seed1"
    history = pd.read_parquet(train / "history.parquet")
    history["active_units"], history["mutual_information"] = 0, 0.0
    kl = pd.read_parquet(train / "kl.parquet").assign(kl=0.0)
    figure, _, _ = plot_training.draw(history, kl, read_json(train / "summary.json"))
    figure.draw_without_rendering()


def test_pruning_shows_two_standard_errors(run, drawn):
    figure, _, _ = drawn["pruning"]
    evidence = pd.read_parquet(run / "prune/seed1/evidence.parquet").sort_values("kl")[::-1]
    for title, name in (("KL to the prior", "kl"), ("Held-out ablation", "ablation")):
        containers = panel_titled(figure, title).containers
        (bars,) = (c for c in containers if isinstance(c, ErrorbarContainer))
        segments = bars.lines[2][0].get_segments()
        length = [segment[1, 1] - segment[0, 1] for segment in segments]
        np.testing.assert_allclose(length, 4 * evidence[f"{name}_se"])


def test_the_curve_joins_the_envelope_and_marks_the_chosen_beta(run, drawn):
    figure, table, _ = drawn["rate_distortion"]
    curve = pd.read_csv(run / "rate_distortion/curve.tsv", sep="\t")
    ax = panel_titled(figure, "Rate and distortion (n = 77 validation cells)")
    line, *marks = ax.get_lines()
    hull = curve[curve["on_envelope"]].sort_values("rate")
    np.testing.assert_allclose(line.get_xydata(), hull[["rate", "distortion"]])
    shown = {mark.get_label(): mark.get_xydata().tolist() for mark in marks}
    assert shown == {
        "chosen β": [[10.2, 595.9]],
        "on the envelope": [[14.0, 594.0], [6.5, 599.0]],
        "above it": [[6.6, 604.0]],
    }
    assert [text.get_text() for text in ax.texts if text.get_text() in ("0.5", "1", "2", "4")] == [
        *("0.5", "1", "2", "4")
    ]
    elbo = panel_titled(figure, "Held-out ELBO")
    assert elbo.get_xscale() == "log"
    assert [text.get_text() for text in elbo.get_xticklabels()] == ["0.5", "1", "2", "4"]
    assert len(table) == 4


@pytest.mark.parametrize("betas", [[1.0, 2.0], [0.01, 0.1, 1.0, 10.0, 100.0]])
def test_any_grid_of_betas_is_drawn(betas):
    curve = pd.DataFrame({"beta": betas, "rate": 5.0, "distortion": 100.0, "elbo": -105.0})
    curve = curve.assign(gain=0.0, gain_se=1.0)
    curve = curve.assign(on_envelope=curve["beta"] == 1, chosen=curve["beta"] == 1)
    figure, _, _ = plot_rate_distortion.draw(curve, {"n_validation": 1234})
    figure.draw_without_rendering()


# ---- injected anomalies


def check_of(kinds, tmp_path):
    run = write_check(tmp_path, kinds)
    draws = pd.read_parquet(run / "check/check.parquet")
    return draws, read_json(run / "check/summary.json")


def curve_panels(figure, n_kinds: int) -> dict:
    """The panels of each measure, a kind each."""
    panels = figure.axes[: 3 * n_kinds]
    rows = [panels[i * n_kinds : (i + 1) * n_kinds] for i in range(3)]
    return dict(zip(("auroc", "power", "fdp"), rows, strict=True))


def test_check_draws_each_method_s_mean_and_range_over_the_draws(run, drawn):
    figure, table, _ = drawn["check"]
    draws = pd.read_parquet(run / "check/check.parquet")
    for measure, (single, *_) in curve_panels(figure, 3).items():
        of = draws[draws["kind"] == "single gene"].groupby(["method", "strength"])[measure]
        assert tuple(c.get_label() for c in single.containers) == METHODS
        for container in single.containers:
            found = of.agg(["mean", "min", "max"]).loc[container.get_label()]
            line, _, (bars,) = container.lines
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), found["mean"])
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            np.testing.assert_allclose(ends, found[["min", "max"]])
    names = [text.get_text() for text in curve_panels(figure, 3)["fdp"][0].get_xticklabels()]
    assert names == ["2", "6"]
    by_panel = table.set_index(["panel", "kind", "strength", "method"])
    of_group = draws[(draws["kind"] == "group") & (draws["method"] == "anomics")]
    row = by_panel.loc[("a", "group", "held out of the training", "anomics")]
    assert row["mean"] == pytest.approx(of_group["auroc"].mean())
    assert row["high"] - row["low"] == pytest.approx(0.06)


def test_check_has_a_curve_for_a_scale_and_a_point_for_a_kind_without(drawn):
    figure, _, _ = drawn["check"]
    single, doublet, group = curve_panels(figure, 3)["power"]
    lines = [c.lines[0].get_linestyle() for ax in (single, doublet, group) for c in ax.containers]
    assert lines == ["-"] * 3 + ["None"] * 6
    assert [len(c.lines[0].get_xdata()) for c in doublet.containers] == [1, 1, 1]


def test_check_marks_chance_and_the_nominal_rate(drawn):
    figure, _, _ = drawn["check"]
    level = {"auroc": 0.5, "fdp": 0.1}
    for measure, value in level.items():
        for ax in curve_panels(figure, 3)[measure]:
            flat = [
                line.get_ydata()[0]
                for line in ax.get_lines()
                if line.get_linestyle() in (":", "--")
            ]
            assert flat == [value]


def test_check_tells_the_numbers_to_who_cannot_see_it(drawn):
    _, table, alt = drawn["check"]
    found = table[(table["kind"] == "doublet") & (table["method"] == "anomics")]
    auroc = found.loc[found["panel"] == "a", "mean"].iloc[0]
    assert f"doublet, matched depth: AUROC {auroc:.2f}" in alt and "nominal 0.1" in alt


MANY = {f"kind {i}": ("weak", "of a strength with a very long name", "strong") for i in range(5)}


@pytest.mark.parametrize("kinds", [{"single gene": ("z = 2",)}, MANY, {}])
def test_check_of_any_number_of_kinds_is_two_columns_wide(kinds, tmp_path):
    drawn = plot_check.draw(*check_of(kinds, tmp_path))
    save_figure(*drawn, outputs(tmp_path, "check"))
    with Image.open(tmp_path / "check.png") as image:
        assert image.width / 300 * 25.4 == pytest.approx(183, abs=0.2)
        assert image.height / 300 * 25.4 < 247
