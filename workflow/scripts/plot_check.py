"""Figure ``check``: what this run finds of anomalies that were put into normal cells."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figure_style import (
    BLUE,
    GREY,
    ORANGE,
    letter_panels,
    new_figure,
    panels_table,
    save_figure,
    style,
)
from job import job, read_json, read_tsv

COLOURS = {"anomics": BLUE, "total count": GREY, "PCA error": ORANGE}
PANELS = {
    "auroc": "AUROC (0.5 = chance)",
    "power": "Power: share found",
    "fdp": "Realised FDP",
}
ROW_HEIGHT, HEAD = 6.0, 22.0  # mm


def _draw_measure(ax: Axes, table: pd.DataFrame, rows: pd.DataFrame, measure: str) -> None:
    """A row a kind and strength, a mark a method."""
    for i, (method, colour) in enumerate(COLOURS.items()):
        of = rows.merge(table[table["method"] == method], on=["kind", "strength"], how="left")
        y = np.arange(len(rows)) + (i - 1) * 0.2
        error = of["auroc_sd"] if measure == "auroc" else None
        ax.errorbar(of[measure], y, xerr=error, fmt="o", color=colour, ms=3, elinewidth=0.6,
                    label=method)  # fmt: skip
    ax.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    ax.set_xlim(-0.03, 1.03)
    ax.grid(axis="y", lw=0.3, color="#E5E5E5")
    ax.set_xlabel(PANELS[measure])


@style()
def draw(table: pd.DataFrame, summary: dict) -> tuple[Figure, pd.DataFrame, str]:
    """``table``: a row a kind, strength and method, as check_injected writes it."""
    rows = table[["kind", "strength"]].drop_duplicates().reset_index(drop=True)
    height = HEAD + ROW_HEIGHT * len(rows)
    figure, axes = new_figure([list(PANELS)], height, width_ratios=[1.0, 1.0, 1.0])
    for measure, ax in axes.items():
        _draw_measure(ax, table, rows, measure)
        ax.set_yticks(np.arange(len(rows)), [""] * len(rows))
    if table.empty:
        axes["auroc"].text(0.5, 0.5, "Too few unseen cells for a check", ha="center", va="center",
                           transform=axes["auroc"].transAxes)  # fmt: skip
    labels = [f"{row.kind}: {row.strength}" for row in rows.itertuples()]
    axes["auroc"].set_yticklabels(labels)
    axes["fdp"].axvline(summary["alpha"], color=GREY, lw=0.6, ls="--")
    axes["auroc"].axvline(0.5, color=GREY, lw=0.6, ls=":")
    axes["auroc"].set_title(f"Injected anomalies ({summary['repeats']} draws)")
    axes["power"].set_title(f"At a false discovery rate of {summary['alpha']:g}")
    axes["fdp"].set_title("Dashed: the nominal rate")
    # Outside: any place in a panel may hold a mark.
    handles, labels = axes["fdp"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(COLOURS))
    letter_panels(axes.values())
    alt = f"{len(rows)} kinds and strengths of injected anomalies."
    return figure, panels_table({"check": table}), alt


if __name__ == "__main__":
    with job(snakemake) as log:
        table = read_tsv(snakemake.input.table)
        save_figure(*draw(table, read_json(snakemake.input.summary)), snakemake.output)
        log.info("%d kinds of anomaly", len(table.drop_duplicates(["kind", "strength"])))
