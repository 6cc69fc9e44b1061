"""How every figure looks, and how it is written: one style, four files, the same bytes again.

Figures are built from :class:`matplotlib.figure.Figure` without pyplot, so no figure stays open
and no setting outlives the drawing. All are as wide as two columns of a
journal (183 mm), with text of 5.5 to 7 pt; height grows with the number of samples.
"""

import logging
from collections.abc import Iterable, Mapping
from contextlib import contextmanager

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from job import write_atomically, write_tsv

WIDTH = 183.0  # mm, two columns of a journal; all figures have several panels
ROW_HEIGHT = 4.0  # mm for one sample in a list of samples
MAX_TALL_ROWS = 8  # samples up to which a row holds two lines of text
MM_PER_INCH = 25.4
MAX_VECTOR_MARKS = 20_000  # above this, editors choke on the points: they become an image

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), told apart with any colour vision.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILLION, YELLOW, BLACK = "#56B4E9", "#D55E00", "#F0E442", "#000000"
GREY, LIGHT_GREY = "#7F7F7F", "#C9C9C9"
ANOMALY = VERMILLION
ROLES = {"reference": GREY, "query": BLUE, "reference and query": PURPLE}
SPLITS = {"train": GREY, "validation": PURPLE, "calibration": GREEN, "query": BLUE}
CATEGORIES = (
    *(BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, "#882255", "#44AA99", "#332288", "#999933"),
    *("#AA4499", "#117733", "#88CCEE", "#DDCC77", "#CC6677", "#661100", "#6699CC", "#AAAA00"),
    *("#4D4D4D", "#B5B5B5"),
)
OTHER = "other"

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "Liberation Sans", "DejaVu Sans"],
    "font.size": 6,
    "axes.titlesize": 7,
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "axes.labelsize": 6,
    "axes.linewidth": 0.5,
    "axes.labelpad": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "xtick.labelsize": 5.5,
    "ytick.labelsize": 5.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.minor.width": 0.35,
    "ytick.minor.width": 0.35,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 0.9,
    "lines.markersize": 2.5,
    "patch.linewidth": 0.5,
    "legend.fontsize": 5.5,
    "legend.title_fontsize": 5.5,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.handlelength": 1.2,
    "legend.handletextpad": 0.5,
    "legend.borderaxespad": 0.2,
    "legend.labelspacing": 0.3,
    "mathtext.fontset": "custom",
    "mathtext.default": "regular",
    "mathtext.rm": "sans",
    "mathtext.bf": "sans:bold",
    "pdf.fonttype": 42,  # TrueType: text stays text in an editor
    "svg.fonttype": "none",
    "svg.hashsalt": "anomics",
    "savefig.dpi": 300,
    "figure.dpi": 300,
}
NO_DATES = {
    "pdf": {"CreationDate": None, "ModDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}

# Each machine lacks some of the fonts in the list; a warning for each text says nothing new.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


@contextmanager
def style():
    """Matplotlib's defaults with the house style on top; also a decorator, ``@style()``."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(mosaic: list[list[str]], height: float, **layout) -> tuple[Figure, dict[str, Axes]]:
    """A figure of 183 mm x ``height`` mm with the named panels; call it within the style."""
    figure = Figure(figsize=(WIDTH / MM_PER_INCH, height / MM_PER_INCH), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05, wspace=0.04, hspace=0.05)
    axes = figure.subplot_mosaic(mosaic, empty_sentinel=".", **layout)
    return figure, axes


def letter_panels(axes: Iterable[Axes]) -> None:
    """Put a, b, c ... before the panels' titles, as journals want them."""
    for letter, ax in zip("abcdefghijklmnopqrstuvwxyz", axes, strict=False):
        title = ax.get_title(loc="left")
        ax.set_title(f"$\\mathbf{{{letter}}}$  {title}".rstrip(), loc="left")


def rows_height(n_rows: int, least: float = 45.0) -> float:
    """Height in mm of a panel that lists ``n_rows`` samples below each other."""
    height = ROW_HEIGHT if n_rows > MAX_TALL_ROWS else 2 * ROW_HEIGHT
    return max(least, 18.0 + height * n_rows)


def shorten(name: object, length: int = 22) -> str:
    """A name that fits an axis: the middle of a long one becomes an ellipsis; $ is no formula."""
    text = str(name)
    if len(text) > length:
        head = (length - 1) // 2
        text = f"{text[:head]}…{text[-(length - 1 - head) :]}"
    return text.replace("$", r"\$")


def category_colours(values: pd.Series, most: int = 12) -> dict[str, str]:
    """A colour for each category, the largest first; past ``most`` the rest share ``other``.

    A colour goes by the category's place in the sorted names, so it is the same in every figure.
    """
    sizes = values.astype(str).value_counts()
    sizes = sizes.sort_index().sort_values(ascending=False, kind="stable")
    names = sorted(sizes.index if len(sizes) <= most else sizes.index[: most - 1])
    colours = dict(zip(names, CATEGORIES, strict=False))
    if len(sizes) > most:
        colours[OTHER] = LIGHT_GREY
    return colours


def scatter(ax: Axes, x, y, **style) -> None:
    """Points without outlines, as an image inside the figure when there are very many."""
    n = len(x)
    size = style.pop("s", float(np.clip(4000 / max(n, 1), 0.6, 8)))
    options = {"s": size, "linewidths": 0, "rasterized": n > MAX_VECTOR_MARKS} | style
    ax.scatter(x, y, **options)


def log_axis(axis) -> None:
    """A logarithmic axis whose labels are plain numbers and do not run into each other."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    steps = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=12))
    axis.set_minor_formatter(NullFormatter())


def jitter_rows(ax: Axes, rows: list[np.ndarray], colours: list[str], rng, **style) -> None:
    """Row i: every value as a point, moved up or down at random so that few hide each other."""
    sizes = [len(row) for row in rows]
    n_cells = sum(sizes)
    if n_cells:
        place = np.repeat(np.arange(len(rows)), sizes) + rng.uniform(-0.3, 0.3, n_cells)
        point_colours = np.repeat(np.array(colours, dtype=object), sizes)
        fade = float(np.clip(300 / max(sizes), 0.08, 0.45))
        options = {"alpha": fade, "c": list(point_colours)} | style
        scatter(ax, np.concatenate(rows), place, **options)


def strip_and_box(ax: Axes, rows: list[np.ndarray], colours: list[str], rng) -> None:
    """Row i: every value as a jittered point, and a box (quartiles, whiskers at 5 and 95 %)."""
    jitter_rows(ax, rows, colours, rng)
    large = [i for i, row in enumerate(rows) if len(row) >= 5]  # quartiles of fewer say nothing
    if not large:
        return
    line = {"color": BLACK, "linewidth": 0.6}
    ax.boxplot(
        [rows[i] for i in large],
        positions=large,
        orientation="horizontal",
        whis=(5, 95),
        widths=0.5,
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": (1, 1, 1, 0.6), "linewidth": 0.6},
        whiskerprops=line,
        capprops=line,
        medianprops={"color": BLACK, "linewidth": 1.2},
    )


def list_rows(ax: Axes, names: list[str], notes: list[str]) -> None:
    """One tick a row, the first on top; the note stands below the name where there is room."""
    join = "\n" if len(names) <= MAX_TALL_ROWS else "  "
    labels = [f"{shorten(name)}{join}{note}" for name, note in zip(names, notes, strict=True)]
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def say(ax: Axes, text: str) -> None:
    """A panel that has nothing to show says why, instead of standing empty."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY)
    ax.set(xticks=[], yticks=[])


def panels_table(panels: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The source data of a figure: the panels' tables below each other, NA where not theirs."""
    tables = [table.assign(panel=letter) for letter, table in panels.items() if len(table)]
    if not tables:
        return pd.DataFrame({"panel": []})
    stacked = pd.concat(tables, ignore_index=True)
    return stacked[["panel", *[name for name in stacked.columns if name != "panel"]]]


@style()
def save_figure(figure: Figure, table: pd.DataFrame, alt: str, outputs) -> None:
    """Write ``outputs.pdf``, ``.svg``, ``.png`` (300 dpi), the source data ``.table``, ``.alt``.

    ``alt``: what the figure shows, in a few sentences with its numbers, for who cannot see it.
    """
    for kind in ("pdf", "svg", "png"):
        write_atomically(
            getattr(outputs, kind),
            lambda path, kind=kind: figure.savefig(path, format=kind, metadata=NO_DATES[kind]),
        )
    write_tsv(table, outputs.table)
    write_atomically(outputs.alt, lambda path: path.write_text(alt + "\n", encoding="utf-8"))
