"""Figure ``latent``: the latent space in two dimensions, and where its anomalies lie."""

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figure_style import (
    ANOMALY,
    LIGHT_GREY,
    MAX_VECTOR_MARKS,
    OTHER,
    SPLITS,
    category_colours,
    letter_panels,
    new_figure,
    save_figure,
    say,
    scatter,
    shorten,
    style,
)
from job import job

MAX_CELL_TYPES = 20


def read_obs(path: str | Path, columns: Iterable[str]) -> pd.DataFrame:
    """``cell_id`` and those of ``columns`` that the h5ad has; its counts are not read."""
    with h5py.File(path, "r") as file:
        obs = file["obs"]
        table = {"cell_id": read_elem(obs[obs.attrs["_index"]])}
        table |= {name: read_elem(obs[name]) for name in columns if name in obs}
    return pd.DataFrame(table)


def join_cells(umap: pd.DataFrame, obs: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: its place, its sample and split, and for query cells p and the flag."""
    query = scored.loc[scored["split"] == "query", ["cell_id", "p_value", "is_anomaly"]]
    table = umap.merge(obs, on="cell_id", how="left").merge(query, on="cell_id", how="left")
    table["is_anomaly"] = table["is_anomaly"].astype("boolean").fillna(False).astype(bool)
    return table


def _draw_categories(ax: Axes, cells: pd.DataFrame, column: str, colours: dict[str, str]) -> None:
    """Cells in random order, so that no category hides another; n of each in the legend."""
    names = cells[column].astype("string").fillna("not given").astype(str)
    shown = names.where(names.isin(list(colours)), OTHER if OTHER in colours else names)
    order = np.random.default_rng(0).permutation(len(cells))
    rgb = shown.map(colours).fillna(LIGHT_GREY).to_numpy()[order]
    scatter(ax, cells["umap_1"].to_numpy()[order], cells["umap_2"].to_numpy()[order], c=list(rgb))
    sizes = shown.value_counts()
    present = [name for name in colours if name in sizes.index]
    for name in present:
        label = f"{shorten(name, 26)} (n = {sizes[name]:,})"
        ax.scatter([], [], s=8, color=colours[name], label=label)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_p_values(figure: Figure, ax: Axes, cells: pd.DataFrame) -> None:
    """Query cells by -log10 p above the grey rest; flagged ones ringed, the oddest on top."""
    is_query = cells["p_value"].notna()
    scatter(ax, cells["umap_1"], cells["umap_2"], c=LIGHT_GREY, alpha=0.5)
    query = cells[is_query].sort_values("p_value", ascending=False, kind="stable")
    if not len(query):
        say(ax, "no query cells")
        return
    drawn = ax.scatter(
        query["umap_1"],
        query["umap_2"],
        c=-np.log10(query["p_value"].clip(lower=1e-300)),
        s=float(np.clip(4000 / len(cells), 0.6, 8)),
        cmap="viridis",
        vmin=0,
        linewidths=0,
        rasterized=len(cells) > MAX_VECTOR_MARKS,
    )
    bar = figure.colorbar(drawn, cax=ax.inset_axes([1.06, 0.1, 0.03, 0.6]))
    bar.set_label(r"$-\log_{10}$ p-value")
    bar.outline.set_visible(False)
    flagged = query[query["is_anomaly"]]
    ax.scatter(
        flagged["umap_1"],
        flagged["umap_2"],
        s=float(np.clip(3000 / max(len(flagged), 1), 2, 20)),
        facecolors="none",
        edgecolors=ANOMALY,
        linewidths=0.4 if len(flagged) < 500 else 0.2,
        rasterized=len(cells) > MAX_VECTOR_MARKS,
        label=f"flagged (n = {len(flagged):,} of {len(query):,})",
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


@style()
def draw(cells: pd.DataFrame) -> tuple[Figure, pd.DataFrame, str]:
    """``cells``: cell_id, umap_1, umap_2, sample, role, split, p_value, is_anomaly, cell_type?"""
    has_types = "cell_type" in cells and 1 <= cells["cell_type"].nunique() <= MAX_CELL_TYPES
    mosaic = [["sample", "split"], ["p_value", "cell_type" if has_types else "."]]
    figure, axes = new_figure(mosaic, 125)
    samples = cells["sample"].astype(str)
    titles = {
        "sample": f"Sample (n = {len(cells):,} cells)",
        "split": "Use of the cell",
        "p_value": "How odd the query cells are",
        "cell_type": "Cell type, as the input names it",
    }
    _draw_categories(axes["sample"], cells, "sample", category_colours(samples))
    _draw_categories(axes["split"], cells, "split", SPLITS)
    _draw_p_values(figure, axes["p_value"], cells)
    if has_types:
        types = cells["cell_type"].astype("string").fillna("not given")
        colours = category_colours(types, most=MAX_CELL_TYPES)
        _draw_categories(axes["cell_type"], cells, "cell_type", colours)
    for name, ax in axes.items():
        ax.set(title=titles[name], xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        # A distance in the plot means the same in both directions.
        ax.set_aspect("equal", adjustable="datalim")
    letter_panels(axes.values())
    columns = ["cell_id", "umap_1", "umap_2", "sample", "role", "split", "p_value", "is_anomaly"]
    alt = f"UMAP of {len(cells):,} cells by sample, use, p-value and cell type."
    return figure, cells[columns + (["cell_type"] if has_types else [])], alt


if __name__ == "__main__":
    with job(snakemake) as log:
        obs = read_obs(snakemake.input.counts, ["sample", "role", "split", "cell_type"])
        umap = pd.read_parquet(snakemake.input.umap)
        cells = join_cells(umap, obs, pd.read_parquet(snakemake.input.cells))
        save_figure(*draw(cells), snakemake.output)
        log.info("%d cells", len(cells))
