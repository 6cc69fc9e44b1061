"""Figures have the width journals want, the same bytes each time, and their source data."""

import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image

import figure_style
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
from figure_style import category_colours, save_figure, shorten

MM_PER_POINT = 25.4 / 72


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = write_fake_run(tmp_path_factory.mktemp("fake_run"), n_cells=200)
    return write_check(write_optional_stages(folder))


def read_json(path):
    return pd.read_json(path, typ="series").to_dict()


def read_patterns(run) -> list[pd.DataFrame]:
    folder = run / "patterns"
    patterns, markers, sizes = (
        pd.read_csv(folder / f"{name}.tsv", sep="\t") for name in ("patterns", "markers", "sizes")
    )
    residuals, cells = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("residuals", "cells")
    )
    return [patterns, markers, residuals, sizes, cells]


def read_genes(run) -> list:
    folder = run / "genes"
    hits, top = (pd.read_parquet(folder / f"{name}.parquet") for name in ("genes", "top"))
    density, outliers = (
        pd.read_csv(folder / f"{name}.tsv", sep="\t") for name in ("density", "outliers")
    )
    return [hits, density, top, outliers, read_json(folder / "summary.json")]


def draw_all(run) -> dict:
    """Each figure as (figure, table, alt), from the files of a run."""
    qc = pd.concat([pd.read_parquet(p) for p in sorted(run.glob("preprocess/*.qc.parquet"))])
    summaries = sorted(run.glob("preprocess/donor*.summary.json"))
    limits = {p.name.removesuffix(".summary.json"): plot_qc.read_limits(p) for p in summaries}
    sizes = pd.read_parquet(run / "library_size/library_size.parquet")
    cells = pd.read_parquet(run / "anomaly/cells.parquet")
    train, prune = run / "train/seed1", run / "prune/seed1"
    obs = plot_latent.read_obs(
        run / "preprocess/counts.h5ad", ["sample", "role", "split", "cell_type", "not there"]
    )
    umap = pd.read_parquet(run / "embed/seed1/umap.parquet")
    drawn = {
        "qc": plot_qc.draw(qc.reset_index(drop=True), limits),
        "library_size": plot_library_size.draw(sizes),
        "training": plot_training.draw(
            pd.read_parquet(train / "history.parquet"),
            pd.read_parquet(train / "kl.parquet"),
            read_json(train / "summary.json"),
        ),
        "pruning": plot_pruning.draw(
            pd.read_parquet(prune / "evidence.parquet"),
            pd.read_csv(prune / "elbo.tsv", sep="\t"),
            plot_pruning.read_thresholds(read_json(prune / "summary.json")),
        ),
        "latent": plot_latent.draw(plot_latent.join_cells(umap, obs, cells)),
        "anomalies": plot_anomalies.draw(cells, read_json(run / "anomaly/summary.json")),
        "patterns": plot_patterns.draw(*read_patterns(run)),
        "genes": plot_genes.draw(*read_genes(run)),
    }
    if (run / "check").exists():
        draws = pd.read_parquet(run / "check/check.parquet")
        drawn["check"] = plot_check.draw(draws, read_json(run / "check/summary.json"))
    if (run / "rate_distortion").exists():
        drawn["rate_distortion"] = plot_rate_distortion.draw(
            pd.read_csv(run / "rate_distortion/curve.tsv", sep="\t"),
            read_json(run / "rate_distortion/summary.json"),
        )
    return drawn


def outputs(folder, name):
    kinds = {"pdf": "pdf", "svg": "svg", "png": "png", "table": "tsv", "alt": "txt"}
    return SimpleNamespace(**{k: folder / f"{name}.{end}" for k, end in kinds.items()})


@pytest.fixture(scope="session")
def drawn(run):
    return draw_all(run)


@pytest.fixture(scope="session")
def figures(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    for name, parts in drawn.items():
        save_figure(*parts, outputs(folder, name))
    return folder


NAMES = (
    *("qc", "library_size", "training", "rate_distortion", "pruning", "latent"),
    *("anomalies", "patterns", "genes", "check"),
)


@pytest.mark.parametrize("name", NAMES)
def test_is_two_columns_wide(figures, name):
    box = re.search(rb"/MediaBox \[([^\]]*)\]", (figures / f"{name}.pdf").read_bytes())[1].split()
    assert float(box[2]) * MM_PER_POINT == pytest.approx(183, abs=0.1)
    with Image.open(figures / f"{name}.png") as image:
        assert image.width / 300 * 25.4 == pytest.approx(183, abs=0.2)
        assert image.info["dpi"][0] == pytest.approx(300, abs=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_text_stays_text(figures, name):
    pdf = (figures / f"{name}.pdf").read_bytes()
    assert b"/Type3" not in pdf and b"/CIDFontType2" in pdf
    assert "<text" in (figures / f"{name}.svg").read_text(encoding="utf-8")


def test_same_bytes_when_made_again(run, figures, tmp_path):
    for name, drawn in draw_all(run).items():
        save_figure(*drawn, outputs(tmp_path, name))
    for path in sorted(figures.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    assert len(list(figures.iterdir())) == 5 * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_has_source_data(figures, name):
    assert len(pd.read_csv(figures / f"{name}.tsv", sep="\t")) > 0


def test_source_data_holds_every_query_cell(run, figures):
    cells = pd.read_parquet(run / "anomaly/cells.parquet")
    table = pd.read_csv(figures / "anomalies.tsv", sep="\t", low_memory=False)
    shown = table[(table["panel"] == "c") & (table["split"] == "query")]
    assert set(shown["cell_id"]) == set(cells.loc[cells["split"] == "query", "cell_id"])


def test_library_sizes_of_a_sample_of_both_roles_are_drawn_by_the_role_of_each_cell():
    sizes = pd.DataFrame({"cell_id": list("abcd"), "sample": ["NA", "NA", "NA", "two"]})
    sizes["library_size"] = [900.0, 1000, 1100, 1200]
    sizes["role"] = ["reference", "query", "query", "query"]
    figure, table, _ = plot_library_size.draw(sizes)
    labels = {text.get_text() for text in figure.axes[1].get_legend().get_texts()}
    assert labels == {"reference (n = 1)", "query (n = 3)"}
    assert table["role"].tolist() == sizes["role"].tolist()
    assert plot_library_size.role_of_samples(sizes) == {"NA": "reference and query", "two": "query"}


def test_leaves_no_setting_behind(run):
    before = dict(matplotlib.rcParams)
    draw_all(run)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("n_samples", "n_cells", "share_odd"), [(1, 3, 0), (1, 60, 0), (2, 8, 1.0), (40, 400, 0.1)]
)
def test_draws_extremes(tmp_path, n_samples, n_cells, share_odd):
    run = write_check(write_fake_run(tmp_path, n_samples, n_cells, share_odd))
    drawn = draw_all(run)
    for figure, table, _ in drawn.values():
        figure.draw_without_rendering()
        assert "panel" not in table or table["panel"].notna().all()


def test_many_cells_become_an_image(run, tmp_path, monkeypatch):
    for module in (figure_style, plot_latent):
        monkeypatch.setattr(module, "MAX_VECTOR_MARKS", 150)
    save_figure(*draw_all(run)["latent"], outputs(tmp_path, "latent"))
    svg = (tmp_path / "latent.svg").read_text(encoding="utf-8")
    assert "<image" in svg and svg.count("<use") < 150


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


def test_limits_that_are_off_are_not_drawn(run):
    limits = plot_qc.read_limits(run / "preprocess/donor1.summary.json")
    assert limits == {"min_counts": 500.0, "max_pct_mito": 9.0}


def test_input_without_mitochondrial_genes_says_so(run):
    qc = pd.read_parquet(run / "preprocess/donor1.qc.parquet").assign(pct_mito=np.nan, kept=True)
    figure, _, _ = plot_qc.draw(qc, {})
    figure.draw_without_rendering()
    assert "no such genes" in " ".join(text.get_text() for text in figure.axes[2].texts)


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
