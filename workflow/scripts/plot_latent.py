"""Figure ``latent``: the latent space in two dimensions, and where its anomalies lie."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from figure_style import (
    ANOMALY,
    LIGHT_GREY,
    OF_TABLE,
    OTHER,
    SPLITS,
    category_colours,
    colours_of,
    letter_panels,
    new_figure,
    numbered,
    plain_number,
    save_figure,
    say,
    scatter,
    shorten,
    style,
)
from job import job
from obs_columns import read_obs

MAX_TYPES = 20  # each with a colour of its own; the smallest share one
LEAST_NUMBERED = 10  # cells: the number would hide fewer
HEIGHT = 62.0  # mm of a row of maps
APART = 0.06  # of the width of a map: two numbers nearer than this would overlap
FLAGGED = "flagged"
USES = SPLITS | {FLAGGED: ANOMALY}
SCALE = "viridis_r"  # the odd ones dark: yellow would be lost on white


def join_cells(umap: pd.DataFrame, obs: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: its place, sample and split, its score, and for query cells p and the flag.

    ``use``: its split, or flagged.
    """
    verdict = scored[["cell_id", "score", "is_anomaly"]]
    verdict = verdict.assign(p_value=scored["p_value"].where(scored["split"] == "query"))
    table = umap.merge(obs, on="cell_id", how="left").merge(verdict, on="cell_id", how="left")
    table["is_anomaly"] = table["is_anomaly"].astype("boolean").fillna(False).astype(bool)
    table["sample"] = table["sample"].astype(str)
    table["use"] = table["split"].astype(str).mask(table["is_anomaly"], FLAGGED)
    if "cell_type" in table:
        table["cell_type"] = table["cell_type"].astype("string").fillna("not given").astype(str)
    return table


def number_places(cells: pd.DataFrame, names: pd.Series, numbers: dict[str, int]) -> dict:
    """Where on the map the number of each category stands: {name: (x, y)}.

    At the cell nearest to the median of its cells. One of few cells, or too near to the number of a
    larger category, has none.
    """
    place = cells[["umap_1", "umap_2"]].to_numpy()
    least = APART * np.ptp(place, axis=0).max()
    found: dict[str, np.ndarray] = {}
    sizes = names.value_counts()
    for name in sizes.index[sizes >= LEAST_NUMBERED]:
        own = place[(names == name).to_numpy()]
        at = own[np.linalg.norm(own - np.median(own, axis=0), axis=1).argmin()]
        if name in numbers and all(np.linalg.norm(at - other) > least for other in found.values()):
            found[name] = at
    return found


def _draw_categories(
    ax: Axes, cells: pd.DataFrame, column: str, colours: dict[str, str], is_numbered: bool = False
) -> None:
    """Cells in random order, so that no category hides another; n of each in the legend."""
    names = cells[column].where(cells[column].isin(list(colours)), OTHER)
    order = np.random.default_rng(0).permutation(len(cells))
    rgb = colours_of(names, colours)[order]
    scatter(ax, cells["umap_1"].to_numpy()[order], cells["umap_2"].to_numpy()[order], c=rgb)
    sizes = names.value_counts()
    present = [name for name in colours if name in sizes.index]
    numbers = {name: i for i, name in enumerate(present, start=1) if name != OTHER}
    if is_numbered and len(present) > 1:
        for name, at in number_places(cells, names, numbers).items():
            box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.7, "lw": 0}
            ax.text(*at, str(numbers[name]), ha="center", va="center", fontsize=5.5, bbox=box)
    n_hidden = cells.loc[names == OTHER, column].nunique()
    for name in present:
        label = shorten(name, 26) if name != OTHER else numbered(n_hidden, f"{OTHER}s")
        if is_numbered and len(present) > 1 and name in numbers:
            label = f"{numbers[name]}  {label}"
        ax.scatter([], [], s=8, color=colours[name], label=f"{label} (n = {sizes[name]:,})")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_values(ax: Axes, cells: pd.DataFrame, value: str, norm: Normalize, label: str) -> None:
    """Cells by a number above the grey ones that have none, the oddest on top."""
    rest, shown = cells[cells[value].isna()], cells[cells[value].notna()]
    size = float(np.clip(4000 / len(cells), 0.6, 8))
    if not len(shown):
        say(ax, "none was scored")
        return
    if len(rest):
        scatter(ax, rest["umap_1"], rest["umap_2"], c=LIGHT_GREY, alpha=0.5, s=size)
        name = f"not {'scored' if value == 'score' else 'in the query'} (n = {len(rest):,})"
        ax.scatter([], [], s=8, color=LIGHT_GREY, label=name)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    shown = shown.sort_values(value, ascending=value == "score", kind="stable")
    scale = SCALE if value == "score" else SCALE.removesuffix("_r")
    place = shown["umap_1"], shown["umap_2"]
    drawn = scatter(ax, *place, c=shown[value], s=size, cmap=scale, norm=norm)
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes([1.06, 0.1, 0.03, 0.6]))
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter(plain_number)
    if value == "p_value":
        bar.ax.invert_yaxis()


def _draw_panel(ax: Axes, cells: pd.DataFrame, name: str, observations: str) -> None:
    of = OF_TABLE[observations].capitalize()
    if name == "cell_type":
        ax.set_title("Cell type, as the input names it")
        colours = category_colours(cells["cell_type"], most=MAX_TYPES)
        _draw_categories(ax, cells, "cell_type", colours, is_numbered=True)
    elif name == "sample":
        ax.set_title(of)
        _draw_categories(ax, cells, "sample", category_colours(cells["sample"]))
    elif name == "use":
        ax.set_title(f"Use of the {observations.removesuffix('s')}")
        _draw_categories(ax, cells, "use", USES)
    elif name == "score":
        ax.set_title(f"Anomaly score (n = {cells['score'].notna().sum():,})")
        # A few far-off cells would leave one colour to all others.
        low, high = cells["score"].quantile([0.01, 0.99]).fillna(0.0)
        low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
        norm = Normalize(low, high, clip=True)
        _draw_values(ax, cells, "score", norm, "Anomaly score")
    else:
        ax.set_title(f"p-value (n = {cells['p_value'].notna().sum():,})")
        least = min(cells["p_value"].min(), 0.1) if cells["p_value"].notna().any() else 0.1
        _draw_values(ax, cells, "p_value", LogNorm(max(least, 1e-300), 1.0), "p-value")


def panels_of(cells: pd.DataFrame) -> list[list[str]]:
    """The four maps that say most: of one sample not the sample, if there is another."""
    order = ["cell_type"] if "cell_type" in cells else []
    order += ["sample"] if cells["sample"].nunique() > 1 else []
    order += ["use", "score", "p_value", "sample"]
    return [order[:2], order[2:4]]


def _describe(cells: pd.DataFrame, observations: str) -> str:
    """The alt text: how many cells of what, how many are flagged, of which type and sample."""
    of, query = OF_TABLE[observations], cells[cells["p_value"].notna()]
    flagged = query[query["is_anomaly"]]
    text = (
        f"UMAP of {numbered(len(cells), observations)} of "
        f"{numbered(cells['sample'].nunique(), of + 's')} in the latent space. "
        f"{len(flagged):,} of {len(query):,} judged {observations} are flagged."
    )
    if "cell_type" in cells:
        sizes = cells["cell_type"].value_counts()
        largest = ", ".join(f"{name} ({n:,})" for name, n in sizes.head(3).items())
        text += f" {numbered(len(sizes), 'cell types')}, the largest {largest}."
    for column, name in (("cell_type", "type"), ("sample", of)):
        if len(flagged) and column in cells and cells[column].nunique() > 1:
            sizes = flagged[column].value_counts()
            share = 100 * sizes.iloc[0] / len(flagged)
            text += f" Of the flagged {share:.0f} % are of {name} {sizes.index[0]}."
    return text


@style()
def draw(cells: pd.DataFrame, observations: str = "cells") -> tuple[Figure, pd.DataFrame, str]:
    """``cells``: as :func:`join_cells`; ``observations``: what a row is, cells or samples."""
    mosaic = panels_of(cells)
    figure, axes = new_figure(mosaic, HEIGHT * len(mosaic))
    for name, ax in axes.items():
        _draw_panel(ax, cells, name, observations)
        ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        # A distance in the plot means the same in both directions.
        ax.set_aspect("equal", adjustable="datalim")
    letter_panels(axes.values())
    columns = ["cell_id", "umap_1", "umap_2", "sample", "role", "split", "score", "p_value"]
    columns += ["is_anomaly", *(["cell_type"] if "cell_type" in cells else [])]
    return figure, cells[columns], _describe(cells, observations)


if __name__ == "__main__":
    with job(snakemake) as log:
        obs = read_obs(snakemake.input.counts, ["sample", "role", "split", "cell_type"])
        umap = pd.read_parquet(snakemake.input.umap)
        cells = join_cells(umap, obs, pd.read_parquet(snakemake.input.cells))
        save_figure(*draw(cells, snakemake.params.observations), snakemake.output)
        log.info("%d cells", len(cells))
