"""Figure ``genes``: which genes are outliers, by how much, in how many cells or samples."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.scale import SymmetricalLogScale
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from figure_style import (
    ANOMALY,
    BLACK,
    BLUE,
    GREY,
    LIGHT_GREY,
    MAX_VECTOR_MARKS,
    letter_panels,
    log_axis,
    new_figure,
    panels_table,
    save_figure,
    say,
    scatter,
    shorten,
    style,
)
from job import job, read_json, read_tsv

SIDES = {"up": ANOMALY, "down": BLUE}
STEPS = {"counts": (0.05, 0.05), "volcano": (0.1, 0.2)}  # of the places in density.tsv
MOST_LABELS, MOST_OBSTACLES = 12, 3000
LINEAR_TO = 10.0  # -log10 p up to which its axis is linear; beyond it hits are far apart
AWAY = 1.5  # points between a mark and its name
LEAST_EXPECTED = 1e-4  # counts; of less nothing can be missing
WIDE = 50.0  # expected counts, largest over smallest, of which only decades are named
HEIGHT, TOP_HEIGHT = 64.0, 52.0  # mm
# Beside a mark, above and below it, at its corners: how the name is aligned, and where it stands.
PLACES = [("left", "center", 1, 0), ("right", "center", -1, 0), ("center", "bottom", 0, 1)]
PLACES += [("center", "top", 0, -1)]
PLACES += [("left", "bottom", 1, 1), ("left", "top", 1, -1)]
PLACES += [("right", "bottom", -1, 1), ("right", "top", -1, -1)]


def plain_number(value: float, _=None) -> str:
    """As a label of an axis: 1,000,000 and not 1e+06."""
    return f"{value:,.10g}"


def gene_table(hits: pd.DataFrame) -> pd.DataFrame:
    """A row a gene and direction: the cells it is a hit in, their median log2 fold change."""
    grouped = hits.groupby(["gene", "direction"])
    table = grouped.agg(
        n_cells=("cell_id", "size"),
        log2_fold_change=("log2_fold_change", "median"),
        log10_p=("log10_p", "min"),
    ).reset_index()
    return table.sort_values(["n_cells", "log10_p", "gene"], ascending=[False, True, True],
                             ignore_index=True)  # fmt: skip


def at_least(counts: pd.Series) -> pd.DataFrame:
    """Share of the cells that have ``n_outlier_genes`` or more; every number that occurs."""
    values, n = np.unique(counts, return_counts=True)
    return pd.DataFrame({"n_outlier_genes": values, "share": np.cumsum(n[::-1])[::-1] / n.sum()})


def label_points(ax: Axes, points: pd.DataFrame) -> list[str]:
    """Name the first points (x, y, name), each on the side where it hides no mark and no name.

    A name that finds no room is left out. The figure's layout must be final. Returns the names.
    """
    renderer, pixels = ax.figure.canvas.get_renderer(), ax.figure.dpi / 72
    inside, named = ax.get_window_extent(renderer), []
    key = ax.get_legend()
    taken = [key.get_window_extent(renderer)] if key else []
    # Of far more marks those of the least interest may be covered.
    marks = [
        Bbox.from_extents(x - pixels, y - pixels, x + pixels, y + pixels)
        for x, y in ax.transData.transform(points[["x", "y"]].head(MOST_OBSTACLES))
    ]
    for i, point in enumerate(points.head(MOST_LABELS).itertuples()):
        for ha, va, right, up in PLACES:
            text = ax.annotate(
                point.name, (point.x, point.y), (right * AWAY, up * AWAY), ha=ha, va=va,
                textcoords="offset points", fontsize=5, annotation_clip=False,
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0
            others = [*taken, *marks[:i], *marks[i + 1 :]]
            if fits and box.y1 <= inside.y1 and not box.count_overlaps(others):
                taken.append(box)
                named.append(point.name)
                break
            text.remove()
    return named


def from_zero(axis, most: float, linear_to: float) -> None:
    """An axis from 0 to ``most``: linear up to ``linear_to``, so that 0 has a place, then log."""
    linscale = 0.4 if linear_to == 1.0 else 1.5
    axis.axes.set(
        **{
            f"{axis.axis_name}scale": SymmetricalLogScale(
                axis, linthresh=linear_to, linscale=linscale
            )
        }
    )
    steps = [0.0, *(s * linear_to for s in (0.2, 0.5) if linear_to > 1.0), linear_to]
    decades = int(np.ceil(np.log10(max(most / linear_to, 1.0))))
    within = (1.0, 3.0) if decades <= 3 else (1.0,)
    steps += [s * linear_to * 10.0**d for d in range(decades + 1) for s in within]
    axis.set_major_locator(FixedLocator(sorted({s for s in steps if s <= most})))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(plain_number)
    axis.axes.set(
        **{f"{axis.axis_name}lim": (-0.12 if linear_to == 1.0 else -0.03 * linear_to, 1.3 * most)}
    )


def make_room(ax: Axes, share: float = 0.2) -> None:
    """Lift the upper end of the y axis, so that the legend has a place without marks."""
    low, high = ax.transScale.transform([(1.0, end) for end in ax.get_ylim()])[:, 1]
    top = ax.transScale.inverted().transform([(1.0, low + (high - low) / (1.0 - share))])[0, 1]
    ax.set_ylim(top=top)


def _draw_density(ax: Axes, density: pd.DataFrame, plane: str) -> None:
    """How many tests lie at each place, from light to dark; an image, whatever their number."""
    places = density[density["plane"] == plane]
    if places.empty:
        return
    steps = STEPS[plane]
    at = [np.rint(places[name] / step).astype(int) for name, step in zip("xy", steps, strict=True)]
    low = [place.min() for place in at]
    grid = np.zeros([place.max() - least + 1 for place, least in zip(at, low, strict=True)][::-1])
    grid[at[1] - low[1], at[0] - low[0]] = places["n_tests"]
    edges = [
        (least + np.arange(n + 1)) * step
        for least, n, step in zip(low, grid.shape[::-1], steps, strict=True)
    ]
    if plane == "counts":
        edges = [10.0**edge for edge in edges]
    shown = np.ma.masked_equal(grid, 0)
    # Not from white: a place with a single test must be seen.
    norm = LogNorm(0.2, max(float(grid.max()), 2.0))
    ax.pcolormesh(*edges, shown, cmap="Greys", norm=norm, rasterized=True)


def _draw_sides(ax: Axes, x: pd.Series, y: pd.Series, side: pd.Series) -> None:
    for name, colour in SIDES.items():
        of = side == name
        scatter(ax, x[of], y[of], c=colour, s=5, zorder=2, label=f"{name} (n = {of.sum():,})",
                rasterized=len(x) > MAX_VECTOR_MARKS)  # fmt: skip


def _draw_volcano(ax: Axes, hits: pd.DataFrame, density: pd.DataFrame, n: int) -> pd.DataFrame:
    """Every test of every sample; returns the points worth a name, the surest first."""
    _draw_density(ax, density, "volcano")
    _draw_sides(ax, hits["log2_fold_change"], -hits["log10_p"], hits["direction"])
    ax.axvline(0, color=GREY, lw=0.5, zorder=0.5)
    sharpest = -hits["log10_p"].min() if len(hits) else 0.0
    from_zero(ax.yaxis, max(sharpest, LINEAR_TO), LINEAR_TO)
    ax.set(xlabel="log2 fold change, observed over expected", ylabel="−log10 p")
    ax.set_title(f"Genes of {n:,} samples")
    places = density.loc[density["plane"] == "volcano", "x"]
    far = 1.08 * max(1.0, places.abs().max(), hits["log2_fold_change"].abs().max())
    ax.set_xlim(-far, far)
    best = hits.sort_values(["log10_p", "gene"])
    names = best["gene"].map(shorten)
    return pd.DataFrame({"x": best["log2_fold_change"], "y": -best["log10_p"], "name": names})


def _draw_genes(ax: Axes, genes: pd.DataFrame, n: int) -> pd.DataFrame:
    """A point a gene that is a hit in any flagged cell; returns those worth a name."""
    _draw_sides(ax, genes["log2_fold_change"], genes["n_cells"], genes["direction"])
    if (genes["log2_fold_change"] < 0).any():
        ax.axvline(0, color=GREY, lw=0.5, zorder=0.5)
    ax.set_ylim(0.8, 1.3 * max(genes["n_cells"].max(), 3))
    log_axis(ax.yaxis)
    ax.set(
        xlabel="Median log2 fold change in these cells", ylabel="Flagged cells it is an outlier in"
    )
    ax.set_title(f"Outlier genes of {n:,} flagged cells")
    best = genes
    return pd.DataFrame({"x": best["log2_fold_change"], "y": best["n_cells"],
                         "name": best["gene"].map(shorten)})  # fmt: skip


def _draw_counts(ax: Axes, hits: pd.DataFrame, density: pd.DataFrame) -> None:
    _draw_density(ax, density, "counts")
    _draw_sides(ax, hits["expected"].clip(lower=0) + 1, hits["observed"] + 1, hits["direction"])
    places = density[density["plane"] == "counts"]
    top = 10 ** max(1.0, *places["x"] + 0.1, *places["y"] + 0.1)
    ax.plot([1, top], [1, top], color=BLACK, lw=0.5, zorder=1.5)
    ax.set(xlim=(0.9, 1.3 * top), ylim=(0.9, 1.3 * top))
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    ax.yaxis.set_major_formatter(plain_number)
    ax.set(xlabel="Expected counts + 1", ylabel="Observed counts + 1")
    n = int(places["n_tests"].sum())
    ax.set_title(f"{n:,} tests")


def _draw_samples(ax: Axes, outliers: pd.DataFrame, above: float) -> pd.DataFrame:
    """The samples by their number of outlier genes; returns the aberrant ones, to be named."""
    table = outliers.sort_values(["n_outlier_genes", "cell_id"], ignore_index=True)
    table["rank"] = np.arange(1, len(table) + 1)
    for is_aberrant, colour in ((False, GREY), (True, ANOMALY)):
        of = table[table["is_aberrant"] == is_aberrant]
        name = "aberrant" if is_aberrant else "usual"
        scatter(
            ax, of["rank"], of["n_outlier_genes"], c=colour, s=7, label=f"{name} (n = {len(of):,})"
        )
    ax.axhline(above, color=GREY, lw=0.6, ls="--")
    most = max(int(table["n_outlier_genes"].max()), above)
    from_zero(ax.yaxis, most, LINEAR_TO)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set(xlabel="Samples, by rank", ylabel="Outlier genes")
    ax.set_title(f"Outlier genes of {len(table):,} samples")
    aberrant = table[table["is_aberrant"]].iloc[::-1]
    return pd.DataFrame({"x": aberrant["rank"], "y": aberrant["n_outlier_genes"],
                         "name": aberrant["cell_id"].map(shorten)})  # fmt: skip


def _draw_shares(ax: Axes, outliers: pd.DataFrame) -> pd.DataFrame:
    tables = []
    for is_flagged, name, colour in ((True, "flagged", ANOMALY), (False, "not flagged", GREY)):
        counts = outliers.loc[outliers["is_anomaly"] == is_flagged, "n_outlier_genes"]
        if not len(counts):
            continue
        table = at_least(counts)
        ends = [0, *table["n_outlier_genes"] + 0.5]
        ax.stairs(100 * table["share"], ends, baseline=None, color=colour, lw=1.0,
                  label=f"{name} (n = {len(counts):,})")  # fmt: skip
        tables.append(table.assign(cells=name))
    ax.set(xlabel="Outlier genes in a cell, at least", ylabel="Query cells (%)", ylim=(0, 103))
    ax.set_yticks(range(0, 101, 20))
    most = max([table["n_outlier_genes"].max() for table in tables], default=1)
    from_zero(ax.xaxis, max(most, 3.0), LINEAR_TO)
    ax.set_title("Outlier genes a cell")
    return pd.concat(tables) if tables else pd.DataFrame()


def _draw_gene(ax: Axes, of_gene: pd.DataFrame, unit: str) -> None:
    """One gene: each cell or sample, the interval that holds 95 % of normal ones, the hits."""
    line = of_gene.assign(expected=of_gene["expected"].clip(lower=LEAST_EXPECTED))
    line = line.sort_values("expected")
    # With an edge, for where the interval is 0 alone.
    ax.fill_between(line["expected"], line["low"].clip(lower=0), line["high"], color=LIGHT_GREY,
                    lw=0.8, alpha=0.7, label="95 % interval of a normal count")  # fmt: skip
    for is_hit, colour in ((False, GREY), (True, ANOMALY)):
        of = line[line["is_hit"] == is_hit]
        name = "outlier" if is_hit else "no outlier"
        scatter(ax, of["expected"], of["observed"], c=colour, s=5, label=name)
    ends = line["expected"].min(), line["expected"].max()
    pad = max((ends[1] / ends[0]) ** 0.06, 1.1)
    ax.set_xlim(ends[0] / pad, ends[1] * pad)
    log_axis(ax.xaxis)
    if ends[1] / ends[0] > WIDE:
        ax.xaxis.set_major_locator(LogLocator())
    least = min(line["observed"].min(), line["low"].min())
    most = max(line["observed"].max(), line["high"].max(), 3.0)
    if least > 0:
        ax.set_ylim(least / 1.3, most * 1.3)
        log_axis(ax.yaxis)
    else:
        from_zero(ax.yaxis, most, 1.0)
    ax.set(xlabel="Expected counts", ylabel="Observed counts")
    n = f"{of_gene['is_hit'].sum():,} of {len(of_gene):,}"
    # In two lines: a title wider than its panel leaves the layout no room.
    ax.set_title(f"{shorten(of_gene['gene'].iloc[0])}\n{n} {unit}s")


@style()
def draw(
    hits: pd.DataFrame, density: pd.DataFrame, top: pd.DataFrame, outliers: pd.DataFrame,
    summary: dict,
) -> tuple[Figure, pd.DataFrame, str]:  # fmt: skip
    """The tables of the folder genes/, as score_genes writes them."""
    is_bulk, genes = summary["observations"] == "samples", list(dict.fromkeys(top["gene"]))
    # Nested: in one grid of twelve columns a column would be too narrow for two panels' labels.
    rows = [[[["a", "b", "c"]]]]
    if genes:
        rows.append([[[f"d{k}" for k in range(len(genes))]]])
    heights = [HEIGHT, TOP_HEIGHT][: len(rows)]
    figure, axes = new_figure(rows, sum(heights) + 4.0, height_ratios=heights)
    table, labels = gene_table(hits), {}
    if is_bulk:
        labels["a"] = _draw_volcano(axes["a"], hits, density, summary["n_reported"])
        labels["c"] = _draw_samples(axes["c"], outliers, summary["aberrant_above"])
    elif len(table):
        labels["a"] = _draw_genes(axes["a"], table, summary["n_reported"])
    else:
        say(
            axes["a"],
            "no outlier gene in a flagged cell" if summary["n_reported"] else "none flagged",
        )
    if len(density):
        _draw_counts(axes["b"], hits, density)
    else:
        say(axes["b"], "none flagged")
    shares = outliers if is_bulk else _draw_shares(axes["c"], outliers)
    for k, gene in enumerate(genes):
        _draw_gene(axes[f"d{k}"], top[top["gene"] == gene], "sample" if is_bulk else "cell")
    for name in "abc":
        if axes[name].get_legend_handles_labels()[0]:
            falls = name == "c" and not is_bulk
            axes[name].legend(loc="upper right" if falls else "upper left")
            make_room(axes[name])
    if genes:
        figure.legend(*axes["d0"].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    letter_panels(axes[name] for name in ("a", "b", "c", *["d0"] * bool(genes)))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for name, points in labels.items():
        label_points(axes[name], points)
    shown = ["cell_id", "gene", "observed", "expected", "log2_fold_change", "log10_p", "direction"]
    panels = {"a": hits[shown] if is_bulk else table, "b": density, "c": shares, "d": top}
    if not is_bulk:
        panels["b, points"] = hits[shown]
    return figure, panels_table(panels), alt_text(hits, outliers, summary)


def alt_text(hits: pd.DataFrame, outliers: pd.DataFrame, summary: dict) -> str:
    """How many outlier genes there are, and which lead."""
    is_bulk = summary["observations"] == "samples"
    unit = "samples" if is_bulk else "flagged cells"
    n_up = int((hits["direction"] == "up").sum())
    text = (
        f"{len(hits):,} outlier genes in {summary['n_reported']:,} {unit} at a false discovery "
        f"rate of {summary['alpha']:g}, {n_up:,} of them up and {len(hits) - n_up:,} down."
    )
    if not len(hits):
        return text
    if is_bulk:
        best = hits.sort_values(["log10_p", "gene"]).head(3)
        leading = ", ".join(
            f"{row.gene} in {row.cell_id} (log2 fold change {row.log2_fold_change:.1f}, p = 1e"
            f"{row.log10_p:.0f})"
            for row in best.itertuples()
        )
        many = outliers.loc[outliers["is_aberrant"], ["cell_id", "n_outlier_genes"]]
        aberrant = ", ".join(f"{name} ({n:,})" for name, n in many.head(5).itertuples(index=False))
        return (
            f"Volcano and observed against expected counts. {text} The surest: {leading}. "
            f"Aberrant samples: {len(many)}{': ' * bool(aberrant)}{aberrant}."
        )
    leading = ", ".join(
        f"{row.gene} {row.direction} in {row.n_cells:,}"
        for row in gene_table(hits).head(5).itertuples()
    )
    return (
        f"Outlier genes by fold change and number of cells, and observed against expected counts. "
        f"{text} Most often: {leading}."
    )


if __name__ == "__main__":
    with job(snakemake) as log:
        source = snakemake.input
        hits, top = pd.read_parquet(source.hits), pd.read_parquet(source.top)
        density = read_tsv(source.density)
        # A sample or a gene may be called NA or 7.
        texts = dict.fromkeys(("cell_id", "sample", "top_gene"), str)
        outliers = read_tsv(source.outliers, dtype=texts, keep_default_na=False)
        summary = read_json(source.summary)
        save_figure(*draw(hits, density, top, outliers, summary), snakemake.output)
        log.info("%d outlier genes", len(hits))
