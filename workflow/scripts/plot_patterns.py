"""Figure ``patterns``: the markers of each pattern of flagged cells, its samples and causes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figure_style import (
    GREY,
    LIGHT_GREY,
    category_colours,
    letter_panels,
    list_rows,
    new_figure,
    panels_table,
    rows_height,
    save_figure,
    say,
    shorten,
    style,
)
from job import job, read_tsv

MOST_PATTERNS = 20  # the largest; patterns.tsv has them all
MOST_GENES = 60  # columns that still can be read at 183 mm
GENES_A_PATTERN = 10  # markers up and down together, fewer where there are many patterns
LEAST_LIMIT = 2.0  # SDs at the end of the colours: smaller residuals must not look strong
NO_PATTERN = "no pattern"
TEXTS = ("pattern", "gene", "direction", "sample", "nearest_reference")


def chosen_genes(markers: pd.DataFrame, patterns: list[str]) -> list[str]:
    """The first markers of each pattern, pattern by pattern, none twice.

    A third of them down where there are as many, so that what a pattern lacks is seen too.
    """
    each = max(2, min(GENES_A_PATTERN, MOST_GENES // max(len(patterns), 1)))
    genes: list[str] = []
    for pattern in patterns:
        own = markers[markers["pattern"] == pattern]
        up, down = (own.loc[own["direction"] == side, "gene"] for side in ("up", "down"))
        n_down = min(len(down), max(each // 3, each - len(up)))
        genes += [*up.head(each - n_down), *down.head(n_down)]
    return list(dict.fromkeys(genes))[:MOST_GENES]


def residual_table(residuals: pd.DataFrame, patterns: list[str], genes: list[str]) -> pd.DataFrame:
    """Mean residual of each pattern (rows) in each gene (columns); NaN where it is not known.

    ``residuals``: patterns/residuals.parquet (pattern, gene, mean_residual).
    """
    table = residuals.pivot(index="pattern", columns="gene", values="mean_residual")
    return table.reindex(index=patterns, columns=genes)


def _draw_heatmap(ax: Axes, table: pd.DataFrame, names: list[str], notes: list[str]) -> None:
    values = table.to_numpy(float)
    limit = max(LEAST_LIMIT, float(np.nanmax(np.abs(values), initial=0.0)))
    image = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.set_facecolor(LIGHT_GREY)
    list_rows(ax, names, notes)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xticks(range(len(table.columns)), [shorten(gene, 14) for gene in table.columns])
    ax.tick_params(axis="x", length=0, rotation=90)
    ax.spines["bottom"].set_visible(False)
    ax.set_title("Marker genes")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, pad=0.01, aspect=12)
    bar.set_label("Mean residual (SD)")
    bar.outline.set_visible(False)


def _draw_sizes(ax: Axes, sizes: pd.DataFrame, rows: list[str]) -> None:
    table = sizes.groupby(["pattern", "sample"])["n_cells"].sum().unstack(fill_value=0)
    colours = category_colours(sizes.loc[sizes.index.repeat(sizes["n_cells"]), "sample"])
    table = table.T.groupby(lambda name: name if name in colours else "other").sum().T
    table = table.reindex(rows, fill_value=0)
    left = np.zeros(len(rows))
    for name, colour in colours.items():
        width = table[name].to_numpy()
        ax.barh(range(len(rows)), width, left=left, color=colour, height=0.7, label=shorten(name))
        left += width
    for row, n in enumerate(left):
        ax.text(n, row, f" {int(n):,}", va="center", color=GREY, fontsize=5.5)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, max(left.max(), 1) * 1.15)
    ax.set(title="Cells by sample", xlabel="Flagged cells")
    if len(colours) > 1:
        ax.legend(loc="lower right")


def _draw_causes(ax: Axes, cells: pd.DataFrame, rows: list[str]) -> pd.DataFrame:
    cause = (
        cells["technical_cause"].str.split("; ").explode().str.replace(r" of .*", "", regex=True)
    )
    pattern = cells["pattern"].replace("", NO_PATTERN).reindex(cause.index)
    share = pd.crosstab(pattern, cause).reindex(rows, fill_value=0)
    share = share.div(cells["pattern"].replace("", NO_PATTERN).value_counts().reindex(rows), axis=0)
    order = [name for name in share.columns if name != "none found"]
    share = share[[*order, *(name for name in share.columns if name == "none found")]]
    ax.imshow(share.to_numpy(float), cmap="Greys", vmin=0, vmax=2, aspect="auto")
    for (row, column), value in np.ndenumerate(share.to_numpy(float)):
        ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center")
    ax.set_xticks(range(share.shape[1]), share.columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    ax.set_title("Technical causes (% of its cells)")
    return share.reset_index(names="pattern").melt("pattern", var_name="cause", value_name="share")


@style()
def draw(
    patterns: pd.DataFrame, markers: pd.DataFrame, residuals: pd.DataFrame,
    sizes: pd.DataFrame, cells: pd.DataFrame,
) -> tuple[Figure, pd.DataFrame, str]:  # fmt: skip
    """The tables of the folder patterns/; ``residuals``: residuals.parquet."""
    shown = patterns.head(MOST_PATTERNS)
    names = list(shown["pattern"])
    genes = chosen_genes(markers, names)
    rows = [*names, *([NO_PATTERN] if (cells["pattern"] == "").any() else [])]
    low = rows_height(len(rows), 40.0)
    figure, axes = new_figure(
        [["genes", "genes"], ["sizes", "causes"]],
        rows_height(len(names), 50.0) + 14.0 + low,
        height_ratios=[rows_height(len(names), 50.0) + 14.0, low],
        width_ratios=[1, 1.3],
    )
    tables = {}
    if genes:
        table = residual_table(residuals, names, genes)
        notes = [f"{row.n_cells} cells, near {shorten(row.nearest_reference)}"
                 for row in shown.itertuples()]  # fmt: skip
        _draw_heatmap(axes["genes"], table, names, notes)
        tables["a"] = table.reset_index().melt("pattern", value_name="mean_residual")
    else:
        say(axes["genes"], "no pattern" if not names else "no marker genes")
    if rows:
        _draw_sizes(axes["sizes"], sizes, rows)
        tables["b"] = sizes[sizes["pattern"].isin(rows)]
        tables["c"] = _draw_causes(axes["causes"], cells, rows)
    else:
        for name in ("sizes", "causes"):
            say(axes[name], "no flagged cells")
    letter_panels(axes[name] for name in ("genes", "sizes", "causes"))
    alt = f"{len(patterns)} patterns among {len(cells):,} flagged cells."
    return figure, panels_table(tables), alt


if __name__ == "__main__":
    with job(snakemake) as log:
        source = snakemake.input
        # A sample, a group or a gene may be called NA or 7.
        text = {"keep_default_na": False, "dtype": dict.fromkeys(TEXTS, str)}
        tables = [read_tsv(source[name], **text) for name in ("patterns", "markers", "sizes")]
        residuals, cells = (pd.read_parquet(source[name]) for name in ("residuals", "cells"))
        patterns, markers, sizes = tables
        save_figure(*draw(patterns, markers, residuals, sizes, cells), snakemake.output)
        log.info("%d patterns", len(patterns))
