"""Figure ``library_size``: how deep each sample was sequenced, by role."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figure_style import (
    ROLES,
    letter_panels,
    list_rows,
    log_axis,
    new_figure,
    rows_height,
    save_figure,
    strip_and_box,
    style,
)
from job import job

LABEL = "Library size (molecules per cell)"


def role_of_samples(cells: pd.DataFrame) -> dict[str, str]:
    """``reference``, ``query`` or ``reference and query`` for each sample."""
    roles = cells.groupby("sample")["role"].agg(lambda role: sorted(set(role)))
    return {
        sample: "reference and query" if len(found) > 1 else found[0]
        for sample, found in roles.items()
    }


def _draw_pooled(ax: Axes, table: pd.DataFrame) -> None:
    """Histograms of all cells of a role, as shares, so that roles of unlike size compare."""
    low, high = np.log10(table["library_size"].min()), np.log10(table["library_size"].max())
    edges = np.logspace(low - 0.02, high + 0.02, int(np.clip(len(table) / 10, 8, 50)) + 1)
    for role, colour in ROLES.items():
        sizes = table.loc[table["role"] == role, "library_size"]
        if len(sizes):
            share = 100 * np.histogram(sizes, edges)[0] / len(sizes)
            ax.stairs(share, edges, color=colour, fill=True, alpha=0.25)
            ax.stairs(share, edges, color=colour, lw=0.9, label=f"{role} (n = {len(sizes):,})")
    log_axis(ax.xaxis)
    ax.set(xlabel=LABEL, ylabel="Cells (% of the role)", title="All samples, by role")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_ylim(0, ax.get_ylim()[1] * 1.3)
    ax.legend(loc="upper left")


@style()
def draw(library_size: pd.DataFrame) -> tuple[Figure, pd.DataFrame, str]:
    """One row a sample (points, quartiles, 5 to 95 %) beside the pooled histogram of each role."""
    table = library_size[["cell_id", "sample", "library_size", "role"]].copy()
    roles = role_of_samples(table)
    samples = list(dict.fromkeys(table["sample"]))
    height = rows_height(len(samples))
    # Beside a long list of samples the histogram keeps its shape and leaves the rest empty.
    mosaic = [["samples", "pooled"], ["samples", "."]] if height > 90 else [["samples", "pooled"]]
    ratios = {"height_ratios": [60, height - 60]} if height > 90 else {}
    figure, axes = new_figure(mosaic, height, **ratios)
    ax = axes["samples"]
    rows = [table.loc[table["sample"] == name, "library_size"].to_numpy() for name in samples]
    colours = [ROLES[roles[name]] for name in samples]
    strip_and_box(ax, rows, colours, np.random.default_rng(0))
    log_axis(ax.xaxis)
    ax.set(xlabel=LABEL, title="Each sample")
    list_rows(ax, samples, [f"n = {len(row):,}" for row in rows])
    _draw_pooled(axes["pooled"], table)
    letter_panels(axes.values())
    alt = f"Library sizes of {len(table):,} cells in {len(samples):,} samples."
    return figure, table, alt


if __name__ == "__main__":
    with job(snakemake) as log:
        sizes = pd.read_parquet(snakemake.input.library_size)
        save_figure(*draw(sizes), snakemake.output)
        log.info("%d cells", len(sizes))
