"""Figure ``correlation``: are bulk samples still alike once the model has explained what it can."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from figure_style import (
    ANOMALY,
    BLUE,
    GREY,
    LIGHT_GREY,
    ROLES,
    category_colours,
    letter_panels,
    new_figure,
    panels_table,
    save_figure,
    shorten,
    style,
)
from job import job, read_json, read_tsv

MOST_NAMES = 40  # samples whose names fit beside a heatmap
MOST_BARS = 4  # columns of the metadata above it
HEATMAP, BAR, FOOT = 78.0, 3.2, 44.0  # mm
BIN = 0.02  # of a correlation
ABERRANT = "outlier genes"


def square(pairs: pd.DataFrame, samples: list[str], column: str) -> np.ndarray:
    """The pairs as a symmetric matrix with 1 on its diagonal, the samples in the given order."""
    place = {name: i for i, name in enumerate(samples)}
    one, other = (pairs[name].map(place).to_numpy() for name in ("sample_1", "sample_2"))
    matrix = np.eye(len(samples))
    matrix[one, other] = matrix[other, one] = pairs[column]
    return matrix


def colour_bars(samples: pd.DataFrame, aberrant: set[str]) -> dict[str, tuple[list, dict]]:
    """Of each bar its name: the level of each sample and the colour of each level."""
    names = [name for name in samples if name != "cell_id"][:MOST_BARS]
    bars = {
        name: (list(samples[name]), ROLES if name == "role" else category_colours(samples[name]))
        for name in names
    }
    if aberrant:
        levels = ["aberrant" if name in aberrant else "usual" for name in samples["cell_id"]]
        bars[ABERRANT] = (levels, {"aberrant": ANOMALY, "usual": LIGHT_GREY})
    return bars


def _draw_bars(ax: Axes, bars: dict, is_named: bool) -> None:
    if bars:
        rows = [[to_rgb(colours[level]) for level in levels] for levels, colours in bars.values()]
        ax.imshow(np.array(rows), aspect="auto", interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks(
        range(len(bars)), [shorten(name) for name in bars] if is_named else [""] * len(bars)
    )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _draw_heatmap(ax: Axes, matrix: np.ndarray, samples: list[str], is_named: bool):
    image = ax.imshow(
        matrix, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
    )
    ax.set(xticks=[], yticks=[], xlabel=f"Samples (n = {len(samples):,})")
    if is_named and len(samples) <= MOST_NAMES:
        ax.set_yticks(range(len(samples)), [shorten(name, 16) for name in samples], fontsize=5)
        ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)
    return image


def histogram(pairs: pd.DataFrame) -> pd.DataFrame:
    """Share of the pairs in each bin of the correlation: columns from, before, after."""
    edges = np.linspace(-1.0, 1.0, round(2.0 / BIN) + 1)
    counts = {name: np.histogram(pairs[name], edges)[0] for name in ("before", "after")}
    shares = {name: n / max(len(pairs), 1) for name, n in counts.items()}
    return pd.DataFrame({"from": edges[:-1].round(6)} | shares)


def _draw_histogram(ax: Axes, table: pd.DataFrame, summary: dict) -> None:
    edges = [*table["from"], 1.0]
    for name, colour in (("before", GREY), ("after", BLUE)):
        ax.stairs(100 * table[name], edges, color=colour, fill=name == "before", alpha=0.6
                  if name == "before" else 1.0, lw=1.0,
                  label=f"{name} (median |r| = {summary[f'median_{name}']:.2f})")  # fmt: skip
    ax.set(xlabel="Correlation of two samples (Spearman's r)", ylabel="Pairs (%)", xlim=(-1, 1))
    ax.legend(loc="upper left")


def _draw_keys(ax: Axes, bars: dict) -> None:
    """The colours of all bars: a title and its levels, one under another."""
    ax.axis("off")
    if not bars:
        return
    handles = []
    for name, (levels, colours) in bars.items():
        n = pd.Series(levels).value_counts()
        handles.append(Patch(color="none", label=shorten(name)))
        handles += [Patch(color=colours[level], label=f"{shorten(level)} (n = {n[level]:,})")
                    for level in colours if level in n]  # fmt: skip
    key = ax.legend(handles=handles, loc="upper left", ncols=1 + len(handles) // 11)
    for handle, text in zip(handles, key.get_texts(), strict=True):
        if handle.get_facecolor()[3] == 0:
            text.set_weight("bold")


@style()
def draw(
    pairs: pd.DataFrame, samples: pd.DataFrame, summary: dict, aberrant: set[str]
) -> tuple[Figure, pd.DataFrame, str]:
    """``samples``: in the order of the heatmaps; ``aberrant``: the names of those that are."""
    names, bars = list(samples["cell_id"]), colour_bars(samples, aberrant)
    bar_height = BAR * max(len(bars), 1)
    figure, axes = new_figure(
        [["bars a", "bars b"], ["before", "after"], ["histogram", "keys"]],
        HEATMAP + bar_height + FOOT + 14.0,
        height_ratios=[bar_height, HEATMAP, FOOT],
    )
    for column, of in (("before", "a"), ("after", "b")):
        _draw_bars(axes[f"bars {of}"], bars, column == "before")
        image = _draw_heatmap(axes[column], square(pairs, names, column), names, column == "before")
    axes["bars a"].set_title("Counts at equal depth")
    axes["bars b"].set_title("Counts over the model's expectation")
    bar = figure.colorbar(image, ax=[axes["before"], axes["after"]], pad=0.01, aspect=30)
    bar.set_label("Spearman's r")
    bar.outline.set_visible(False)
    shares = histogram(pairs)
    _draw_histogram(axes["histogram"], shares, summary)
    axes["histogram"].set_title(f"All {len(pairs):,} pairs")
    _draw_keys(axes["keys"], bars)
    letter_panels(axes[name] for name in ("bars a", "bars b", "histogram"))
    table = panels_table({"a, b": pairs, "bars": samples, "c": shares})
    return figure, table, alt_text(pairs, samples, summary)


def alt_text(pairs: pd.DataFrame, samples: pd.DataFrame, summary: dict) -> str:
    """What is left of the likeness, in all and within the groups of the first bars."""
    sentences = [
        f"Two heatmaps of the correlations of {summary['n_samples']:,} samples over "
        f"{summary['n_genes']:,} genes, in the same order: of counts at equal depth the median "
        f"size is {summary['median_before']:.2f}, and {summary['median_after']:.2f} of what the "
        "model's expectation leaves over."
    ]
    for name in [name for name in samples if name != "cell_id"][:MOST_BARS]:
        of = samples.set_index("cell_id")[name]
        alike = pairs["sample_1"].map(of).to_numpy() == pairs["sample_2"].map(of).to_numpy()
        within, between = (pairs[which][["before", "after"]].mean() for which in (alike, ~alike))
        sentences.append(
            f"Samples alike in {name} correlate by {within['before']:.2f} before and "
            f"{within['after']:.2f} after, others by {between['before']:.2f} and "
            f"{between['after']:.2f}."
        )
    return " ".join(sentences)


if __name__ == "__main__":
    with job(snakemake) as log:
        source = snakemake.input
        # A level may be called NA or 7.
        samples = read_tsv(source.samples, dtype=str, keep_default_na=False)
        outliers = read_tsv(source.outliers, dtype={"cell_id": str})
        aberrant = set(outliers.loc[outliers["is_aberrant"], "cell_id"])
        pairs = pd.read_parquet(source.pairs)
        save_figure(*draw(pairs, samples, read_json(source.summary), aberrant), snakemake.output)
        log.info("%d samples", len(samples))
