"""Figure ``patterns``: the markers of each pattern of flagged cells, its samples and causes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figure_style import (
    GREY,
    LIGHT_GREY,
    OF_TABLE,
    category_colours,
    letter_panels,
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
GENES_A_PATTERN = 15  # markers up and down together, fewer where there are many patterns
LEAST_LIMIT = 2.0  # SDs at the end of the colours: smaller residuals must not look strong
LIMIT_SHARE = 0.98  # of the residuals that are within the colours; they end at 10 SD
CELL_HEIGHT, LEAST_BAND, MOST_HEIGHT = 0.4, 3.0, 90.0  # mm: a cell, a pattern, all of them
NO_PATTERN, NO_CAUSE = "no pattern", "none found"
EMPTY_HEIGHT = 20.0  # mm
LEAST_COLUMNS = 4  # of the causes: fewer would be wide slabs
TEXTS = ("pattern", "label", "gene", "direction", "sample", "nearest_reference")


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
    """Residual of single cells (rows: pattern, cell_id) in each gene; NaN where it is not known.

    Pattern by pattern, in each the cells with the largest mean residual on top. ``residuals``:
    patterns/residuals.parquet (pattern, cell_id, gene, residual).
    """
    table = residuals.pivot(index=["pattern", "cell_id"], columns="gene", values="residual")
    table = table.reindex(columns=genes)
    place = table.index.get_level_values("pattern").map(
        {name: i for i, name in enumerate(patterns)}
    )
    shown = pd.DataFrame({"place": place, "mean": -table.mean(axis=1).to_numpy()}).dropna()
    return table.iloc[shown.sort_values(["place", "mean"], kind="stable").index]


def bands(n_cells: pd.Series) -> np.ndarray:
    """Height (mm) of each pattern with so many cells shown; each has room for its name."""
    height = np.maximum(CELL_HEIGHT * n_cells.to_numpy(float), LEAST_BAND)
    return height * min(1.0, MOST_HEIGHT / max(height.sum(), 1e-12))


def _draw_heatmap(
    ax: Axes, table: pd.DataFrame, names: list[str], notes: list[str], observations: str
) -> None:
    values = table.to_numpy(float)
    size = np.abs(values[np.isfinite(values)])
    limit = max(LEAST_LIMIT, float(np.quantile(size, LIMIT_SHARE)) if len(size) else 0.0)
    n_cells = table.groupby("pattern").size().reindex(names, fill_value=0)
    height = bands(n_cells)
    top = np.concatenate([[0.0], np.cumsum(height)])
    # Cells share the height of their pattern.
    edges = [np.linspace(top[i], top[i + 1], n + 1)[1:] for i, n in enumerate(n_cells) if n]
    ax.set_facecolor(LIGHT_GREY)
    image = ax.pcolormesh(
        np.arange(len(table.columns) + 1) - 0.5,
        np.concatenate([[0.0], *edges]),
        np.ma.masked_invalid(values),
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        rasterized=True,
    )
    for end in top[1:-1]:
        ax.axhline(end, color="white", lw=0.8)
    ax.set_yticks(
        (top[:-1] + top[1:]) / 2, [f"{n}  {note}" for n, note in zip(names, notes, strict=True)]
    )
    ax.set_ylim(top[-1], 0)
    ax.set_xticks(range(len(table.columns)), [shorten(gene, 14) for gene in table.columns])
    ax.tick_params(length=0)
    ax.tick_params(axis="x", rotation=90)
    ax.spines[:].set_visible(False)
    shown, of = len(table), int(n_cells.gt(0).sum())
    ax.set_title(
        f"Marker genes of {of} pattern{'s' * (of != 1)} in {shown:,} flagged {observations}"
    )
    extend = "both" if size.max(initial=0.0) > limit else "neither"
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, pad=0.01, aspect=12, extend=extend)
    bar.set_label("Residual (SD)")
    bar.outline.set_visible(False)


def _draw_sizes(
    ax: Axes, sizes: pd.DataFrame, rows: list[str], colours: dict[str, str], observations: str
) -> None:
    table = sizes.groupby(["pattern", "sample"])["n_cells"].sum().unstack(fill_value=0)
    table = table.T.groupby(lambda name: name if name in colours else "other").sum().T
    table = table.reindex(rows, fill_value=0)
    left = np.zeros(len(rows))
    for name, colour in colours.items():
        if name not in table:
            continue
        width = table[name].to_numpy()
        ax.barh(range(len(rows)), width, left=left, color=colour, height=0.7, label=shorten(name))
        left += width
    for row, n in enumerate(left):
        ax.text(n, row, f" {int(n):,}", va="center", color=GREY, fontsize=5.5)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, max(left.max(), 1) * 1.15)
    ax.set(
        title=f"{observations.capitalize()} by {OF_TABLE[observations]}",
        xlabel=f"Flagged {observations}",
    )
    if table.shape[1] > 1:
        ax.legend(loc="lower right")


def _draw_causes(ax: Axes, cells: pd.DataFrame, rows: list[str], observations: str) -> pd.DataFrame:
    cause = (
        cells["technical_cause"].str.split("; ").explode().str.replace(r" of .*", "", regex=True)
    )
    pattern = cells["pattern"].replace("", NO_PATTERN).reindex(cause.index)
    share = pd.crosstab(pattern, cause).reindex(rows, fill_value=0)
    share = share.div(cells["pattern"].replace("", NO_PATTERN).value_counts().reindex(rows), axis=0)
    order = [name for name in share.columns if name != NO_CAUSE]
    share = share[[*order, *(name for name in share.columns if name == NO_CAUSE)]]
    # Only what was found is shaded.
    shade = share.to_numpy(float) * (share.columns != NO_CAUSE)
    ax.imshow(shade, cmap="Greys", vmin=0, vmax=2, aspect="auto")
    for (row, column), value in np.ndenumerate(share.to_numpy(float)):
        ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center")
    ax.set_xlim(-0.5, max(share.shape[1], LEAST_COLUMNS) - 0.5)
    ax.set_xticks(range(share.shape[1]), share.columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    ax.set_title(f"Technical causes (% of its {observations})")
    return share.reset_index(names="pattern").melt("pattern", var_name="cause", value_name="share")


@style()
def draw(
    patterns: pd.DataFrame, markers: pd.DataFrame, residuals: pd.DataFrame,
    sizes: pd.DataFrame, cells: pd.DataFrame, splits: pd.DataFrame, observations: str = "cells",
) -> tuple[Figure, pd.DataFrame, str]:  # fmt: skip
    """The tables of the folder patterns/; ``residuals``: residuals.parquet.

    ``splits``: preprocess/splits.tsv, from which each sample has its colour of the other figures.
    ``observations``: what a row is, cells or samples.
    """
    shown = patterns.head(MOST_PATTERNS)
    names = list(shown["pattern"])
    genes = chosen_genes(markers, names)
    rows = [*names, *([NO_PATTERN] if (cells["pattern"] == "").any() else [])]
    table = residual_table(residuals, names, genes)
    n_shown = table.groupby("pattern").size().reindex(names, fill_value=0)
    high = max(20.0, bands(n_shown).sum()) + 26.0
    low = rows_height(len(rows), 40.0)
    if not rows:
        high = low = EMPTY_HEIGHT
    figure, axes = new_figure(
        [["genes", "genes"], ["sizes", "causes"]],
        high + low,
        height_ratios=[high, low],
        width_ratios=[1, 1.3],
    )
    tables = {}
    if len(table) and genes:
        notes = [f"{row.n_cells:,} {observations}, near {shorten(row.nearest_reference)}"
                 for row in shown.itertuples()]  # fmt: skip
        _draw_heatmap(axes["genes"], table, names, notes, observations)
        tables["a"] = table.reset_index().melt(["pattern", "cell_id"], value_name="residual")
    else:
        say(axes["genes"], "no pattern" if not names else "no marker genes")
    if rows:
        of_cells = splits.loc[splits.index.repeat(splits["n_cells"]), "sample"]
        _draw_sizes(axes["sizes"], sizes, rows, category_colours(of_cells), observations)
        tables["b"] = sizes[sizes["pattern"].isin(rows)]
        tables["c"] = _draw_causes(axes["causes"], cells, rows, observations)
    else:
        for name in ("sizes", "causes"):
            say(axes[name], "none flagged")
    letter_panels(axes[name] for name in ("genes", "sizes", "causes"))
    return figure, panels_table(tables), alt_text(patterns, cells, observations)


def alt_text(patterns: pd.DataFrame, cells: pd.DataFrame, observations: str) -> str:
    """How many patterns there are, and what marks the largest."""
    if not len(cells):
        return f"No heatmap: none of the {observations} is flagged."
    inside = int((cells["pattern"] != "").sum())
    text = f"{inside:,} of {len(cells):,} flagged {observations} are in {len(patterns)} patterns"
    if not len(patterns):
        return f"{text}: no heatmap. Bars and a table of their technical causes."
    leading = "; ".join(
        f"{row.pattern}: {row.n_cells:,} {observations} near {row.nearest_reference}, "
        f"{row.label or 'no marker'}"
        for row in patterns.head(5).itertuples()
    )
    return (
        f"Heatmap of the residuals of single flagged {observations} in marker genes. {text}. The "
        f"largest: {leading}. Below, the samples and the technical causes of each pattern."
    )


if __name__ == "__main__":
    with job(snakemake) as log:
        source = snakemake.input
        # A sample, a group or a gene may be called NA or 7.
        text = {"keep_default_na": False, "dtype": dict.fromkeys(TEXTS, str)}
        names = ("patterns", "markers", "sizes", "splits")
        patterns, markers, sizes, splits = (read_tsv(source[name], **text) for name in names)
        residuals, cells = (pd.read_parquet(source[name]) for name in ("residuals", "cells"))
        drawn = draw(
            patterns, markers, residuals, sizes, cells, splits, snakemake.params.observations
        )
        save_figure(*drawn, snakemake.output)
        log.info("%d patterns", len(patterns))
