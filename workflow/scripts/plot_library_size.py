"""Figure ``library_size``: how deep each sample was sequenced, by role."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figure_style import (
    MAX_TALL_ROWS,
    OF_TABLE,
    ROLES,
    box_rows,
    colours_of,
    first_rows,
    headroom,
    jitter_rows,
    letter_panels,
    list_rows,
    log_axis,
    new_figure,
    numbered,
    rows_height,
    save_figure,
    style,
)
from job import job


def _draw_samples(ax: Axes, table: pd.DataFrame, samples: list[str]) -> None:
    """Each cell in the colour of its role, in random order so that neither role hides the other."""
    rng = np.random.default_rng(0)
    shown = table[table["sample"].isin(samples)]
    shown = shown.iloc[rng.permutation(len(shown))]
    row = pd.Index(samples).get_indexer(shown["sample"])
    size = shown["library_size"].to_numpy()
    jitter_rows(ax, row, size, rng, c=colours_of(shown["role"], ROLES))
    box_rows(ax, row, size)
    log_axis(ax.xaxis)
    n = shown["sample"].value_counts()
    list_rows(ax, samples, [f"n = {n[name]:,}" for name in samples])


def _draw_pooled(ax: Axes, table: pd.DataFrame) -> None:
    """Histograms of all cells of a role, as shares, so that roles of unlike size compare."""
    low, high = np.log10(table["library_size"].min()), np.log10(table["library_size"].max())
    edges = np.logspace(low - 0.02, high + 0.02, int(np.clip(len(table) / 10, 8, 50)) + 1)
    for role, colour in ROLES.items():
        sizes = table.loc[table["role"] == role, "library_size"]
        if len(sizes):
            share = 100 * np.histogram(sizes, edges)[0] / len(sizes)
            label = f"{role} (n = {len(sizes):,})"
            if role == "reference":  # filled, and the other a line, so that a print tells them
                ax.stairs(share, edges, color=colour, fill=True, label=label)
            else:
                ax.stairs(share, edges, color=colour, lw=0.9, label=label)
    log_axis(ax.xaxis)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_ylim(bottom=0)
    headroom(ax, 0.22)
    ax.legend(loc="upper left")


def _describe(table: pd.DataFrame, observations: str) -> str:
    """The alt text: the median and range of each role, the deepest and the shallowest sample."""
    one = observations.removesuffix("s")
    text = f"Library sizes of {numbered(len(table), observations)}."
    for role, sizes in table.groupby("role")["library_size"]:
        low, middle, high = sizes.quantile([0.05, 0.5, 0.95])
        text += (
            f" {role.capitalize()} (n = {len(sizes):,}): median {middle:,.0f} "
            f"counts per {one}, 90 % between {low:,.0f} and "
            f"{high:,.0f}."
        )
    medians = table.groupby("sample")["library_size"].median()
    if len(medians) > 1:
        text += (
            f" Of {len(medians):,} {OF_TABLE[observations]}s the median is smallest in "
            f"{medians.idxmin()} ({medians.min():,.0f}) and largest in "
            f"{medians.idxmax()} ({medians.max():,.0f})."
        )
    return text


@style()
def draw(
    library_size: pd.DataFrame, observations: str = "cells"
) -> tuple[Figure, pd.DataFrame, str]:
    """One row a sample (points, quartiles, 5 to 95 %) beside the pooled histogram of each role.

    ``observations``: what a row of the counts is, cells or samples. Of more samples than fit a
    page those are shown whose median is farthest from that of all.
    """
    table = library_size[["cell_id", "sample", "library_size", "role"]]
    table = table.assign(sample=table["sample"].astype(str), role=table["role"].astype(str))
    log_size = np.log(table["library_size"])
    apart = (log_size.groupby(table["sample"]).median() - log_size.median()).abs()
    samples = first_rows(dict.fromkeys(table["sample"]), apart)
    height, of = rows_height(len(samples)), OF_TABLE[observations]
    if len(samples) > MAX_TALL_ROWS:
        ratios = {"height_ratios": [height, 50]}
        figure, axes = new_figure([["samples"], ["pooled"]], height + 50, **ratios)
    else:
        figure, axes = new_figure([["samples", "pooled"]], height)
    _draw_samples(axes["samples"], table, samples)
    _draw_pooled(axes["pooled"], table)
    few = f"{len(samples)} of {len(apart)} {of}s, those farthest from the median"
    axes["samples"].set_title(few if len(samples) < len(apart) else f"Each {of}")
    axes["pooled"].set(title=f"All {of}s, by role", ylabel=f"Share of {observations} (%)")
    for ax in axes.values():
        ax.set_xlabel(f"Library size (counts per {observations.removesuffix('s')})")
    letter_panels(axes.values())
    return figure, table, _describe(table, observations)


if __name__ == "__main__":
    with job(snakemake) as log:
        sizes = pd.read_parquet(snakemake.input.library_size)
        save_figure(*draw(sizes, snakemake.params.observations), snakemake.output)
        log.info("%d cells", len(sizes))
