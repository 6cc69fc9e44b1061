"""The map of the report: place, facts and some genes of each cell, from the tables of the run."""

from collections.abc import Iterable
from itertools import chain, zip_longest
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from matplotlib import colormaps
from matplotlib.colors import to_hex

from figure_style import ANOMALY, BLUE, SPLITS, category_colours
from obs_columns import read_obs
from omics_vae.counts import Counts
from packed import packed, packed_floats, packed_json

MAX_CELLS = 100_000  # all that is flagged and a random choice of the rest
# Genes are taken until there are so many, or until they take so many bytes of the page.
MAX_GENES, GENE_BYTES = 300, 2_000_000
GENE_STEPS = 63  # of a gene's values; 255 would take a quarter more
MAX_LABELS = 100  # of a category; the smallest are "other" from there on
MAX_COLOURS = {"sample": 12, "cell_type": 20}
OTHER = "other"
# The columns that the map can be coloured by, and how numbers spread over the colours.
CATEGORIES = {
    "finding": "Finding",
    "sample": "Sample",
    "split": "Use",
    "cell_type": "Cell type",
    "pattern": "Pattern",
    "nearest_reference": "Nearest reference",
}
# As the figures: 255 shades, from few to many.
PALETTE = [to_hex(colormaps["viridis"](shade / 254)) for shade in range(255)]
NUMBERS = {
    "score": ("Score", "linear"),
    "p_value": ("p-value", "minus log10"),
    "q_value": ("q-value", "minus log10"),
    "library_size": ("Library size", "log10"),
    "doublet_probability": ("Doublet probability", "linear"),
}


def read_genes(path: str | Path) -> list[str]:
    """The genes of an h5ad, in the order of its columns."""
    with h5py.File(path, "r") as file:
        return [str(gene) for gene in read_elem(file["var"][file["var"].attrs["_index"]])]


def join_facts(
    obs: pd.DataFrame,
    umap: pd.DataFrame,
    sizes: pd.DataFrame,
    scored: pd.DataFrame,
    reasons: pd.DataFrame,
) -> pd.DataFrame:
    """One row a cell in the order of ``obs``: all that the map says of it.

    ``scored``: anomaly/cells.parquet; ``reasons``: anomaly/cells.tsv, of the judged cells.
    """
    judged = scored[scored["split"] == "query"]
    names = ["pattern", "nearest_reference", "doublet_probability"]
    cells = (
        obs.merge(umap, on="cell_id", how="left")
        .merge(sizes[["cell_id", "library_size"]], on="cell_id", how="left")
        .merge(scored[["cell_id", "score", "p_value"]], on="cell_id", how="left")
        .merge(judged[["cell_id", "q_value", "is_anomaly"]], on="cell_id", how="left")
        .merge(reasons[["cell_id", *names]], on="cell_id", how="left")
    )
    is_judged = cells["is_anomaly"].notna()
    cells["is_anomaly"] = cells["is_anomaly"].astype("boolean").fillna(False).astype(bool)
    cells["finding"] = np.select(
        [cells["is_anomaly"], is_judged], ["flagged", "not flagged"], "reference"
    )
    for name in names[:2]:
        cells[name] = cells[name].astype("string").fillna("").where(cells["is_anomaly"], "")
    return cells


def choose_cells(is_flagged: np.ndarray, most: int = MAX_CELLS) -> np.ndarray:
    """Positions of the cells that are drawn, ascending: the flagged ones and some of the rest."""
    if len(is_flagged) <= most:
        return np.arange(len(is_flagged))
    # Random numbers below one; a flagged cell comes before all others.
    rank = np.random.default_rng(0).random(len(is_flagged)) + ~is_flagged
    return np.sort(np.argsort(rank, kind="stable")[:most])


def choose_genes(
    known: Iterable[str], markers: pd.DataFrame, groups: pd.DataFrame, hits: pd.DataFrame
) -> list[str]:
    """Genes that a reader may look for, those of most interest first, at most ``MAX_GENES``.

    In turn the markers of each pattern, those of each reference group, and the outlier genes of the
    most cells.
    """
    ordered = markers.sort_values(["q_value", "gene"], kind="stable")
    lists = [part["gene"].tolist() for _, part in ordered.groupby("pattern", sort=True)]
    lists += [str(genes).split(", ") for genes in groups["genes"]]
    often = hits["gene"].value_counts()
    lists.append(sorted(often.index, key=lambda gene: (-often[gene], gene)))
    known = set(known)
    in_turn = chain.from_iterable(zip_longest(*lists))
    return [gene for gene in dict.fromkeys(in_turn) if gene in known][:MAX_GENES]


def gene_levels(
    counts: Counts, cells: np.ndarray, genes: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log(1 + count at the median library size) in GENE_STEPS from 0 to the top of each gene.

    ``cells``, ``genes``: positions; ``sizes``: of these cells. Returns uint8 (genes, cells) and the
    top of each gene. Counts are passed through twice, block by block; of the values only the steps
    are held.
    """
    scale = np.median(sizes) / sizes
    some = counts.take(cells).of_genes(genes)
    top = np.zeros(len(genes))
    for rows, block in some.blocks():
        highest = block.multiply(scale[rows, None]).max(axis=0).toarray().ravel()
        top = np.maximum(top, np.log1p(highest))
    levels = np.zeros((len(genes), len(cells)), dtype=np.uint8)
    step = np.divide(GENE_STEPS, top, out=np.zeros_like(top), where=top > 0)
    for rows, block in some.blocks():
        dense = np.log1p(block.toarray() * scale[rows, None]) * step
        levels[:, rows] = np.ceil(dense.T - 1e-9)  # what is there at all is above zero
    return levels, top


def pack_genes(names: list[str], levels: np.ndarray, top: np.ndarray) -> list[dict]:
    """Each gene packed, as long as all together take at most ``GENE_BYTES``; first come first."""
    taken, used = [], 0
    for name, row, highest in zip(names, levels, top, strict=True):
        content = packed(row.tobytes())
        used += len(content)
        if used > GENE_BYTES:
            break
        taken.append({"name": name, "top": round(float(highest), 4), "data": content})
    return taken


def colours_of(name: str, values: pd.Series) -> dict[str, str]:
    """The colour of each value, as the figures have it; what is not named here is grey."""
    if name == "finding":
        return {"flagged": ANOMALY, "not flagged": BLUE}
    if name == "split":
        return SPLITS
    colours = category_colours(values[values != ""], MAX_COLOURS.get(name, 12))
    return {label: colour for label, colour in colours.items() if label != OTHER}


def pack_category(name: str, values: pd.Series) -> dict:
    """A column of names: the labels, the most frequent first, their colours, a code a cell."""
    values = values.astype("string").fillna("").astype(str)
    sizes = values.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    if len(sizes) > MAX_LABELS:
        kept = set(sizes.index[: MAX_LABELS - 1])
        return pack_category(name, values.where(values.isin(kept), OTHER))
    labels = sizes.index.tolist()
    colours = colours_of(name, values)
    codes = pd.Categorical(values, categories=labels).codes.astype(np.uint8)
    return {
        "name": name,
        "heading": CATEGORIES[name],
        "labels": [label or "none" for label in labels],
        "colours": [colours.get(label) for label in labels],
        "data": packed(codes.tobytes()),
    }


def pack_place(values: pd.Series) -> str:
    """A coordinate in 65,535 steps from the first to the last; places keep their proportion."""
    return packed(values.to_numpy().astype("<u2").tobytes())


def pack_map(facts: pd.DataFrame, genes: list[dict], n_cells: int, unit: str) -> dict:
    """All that the map needs: places, facts, genes; ``n_cells``: how many the run has."""
    places = facts[["umap_1", "umap_2"]]
    # One scale for both, so that a distance means the same in both directions.
    width = float((places.max() - places.min()).max()) or 1.0
    steps = ((places - places.min()) / width * 65535).round()
    present = [name for name in CATEGORIES if name in facts]
    numbers = [name for name in NUMBERS if name in facts and facts[name].notna().any()]
    return {
        "n": len(facts),
        "of": n_cells,
        "unit": unit,
        "names": packed_json(facts["cell_id"].tolist()),
        "x": pack_place(steps["umap_1"]),
        "y": pack_place(steps["umap_2"]),
        "categories": [pack_category(name, facts[name]) for name in present],
        "numbers": [
            {"name": name, "heading": NUMBERS[name][0], "scale": NUMBERS[name][1]}
            | {"data": packed_floats(facts[name])}
            for name in numbers
        ],
        "genes": genes,
        "steps": GENE_STEPS,
        "palette": PALETTE,
    }


def make_map(paths: dict[str, str], tables: dict[str, pd.DataFrame], unit: str) -> dict:
    """The map of a run. ``paths``: counts, umap, library_size; ``tables``: as the report has."""
    obs = read_obs(paths["counts"], ["sample", "split", "cell_type"])
    umap, sizes = (pd.read_parquet(paths[name]) for name in ("umap", "library_size"))
    facts = join_facts(obs, umap, sizes, tables["cells"], tables["reasons"])
    cells = choose_cells(facts["is_anomaly"].to_numpy())
    n_cells, facts = len(facts), facts.iloc[cells].reset_index(drop=True)
    known = read_genes(paths["counts"])
    names = choose_genes(known, tables["markers"], tables["groups"], tables["genes"])
    place = {gene: i for i, gene in enumerate(known)}
    columns = np.array([place[name] for name in names], dtype=int)
    counts = Counts.open(paths["counts"], memory=0)
    levels, top = gene_levels(counts, cells, columns, facts["library_size"].to_numpy())
    return pack_map(facts, pack_genes(names, levels, top), n_cells, unit)
