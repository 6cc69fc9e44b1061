"""How every figure looks, and how it is written: one style, four files, the same bytes again.

Figures are built from :class:`matplotlib.figure.Figure` without pyplot, so no figure stays open
and no setting outlives the drawing. They are as wide as one column of a journal (89 mm: one panel)
or two (183 mm), at most a page high, with text of 5.5 to 7 pt.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from job import write_atomically, write_tsv

COLUMN, PAGE = 89.0, 183.0  # mm, one and two columns of a journal
MAX_HEIGHT = 240.0  # mm, of the 247 that a page has
ROW_HEIGHT = 4.0  # mm for one sample in a list of samples
MAX_TALL_ROWS = 8  # samples up to which a row holds two lines of text
MAX_ROWS = 40  # samples that fit a page below other panels; the source data has them all
MM_PER_INCH = 25.4
MAX_VECTOR_MARKS = 20_000  # of a figure; above this, editors choke on the points: an image instead
FEW_MARKS = 500  # a set of points that stays vector where the others become an image

# What a row of the sample table is called, by config observations: of bulk counts it has samples.
OF_TABLE = {"cells": "sample", "samples": "group"}

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), told apart with any colour vision.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILLION, YELLOW, BLACK = "#56B4E9", "#D55E00", "#F0E442", "#000000"
GREY, LIGHT_GREY, WINE = "#7F7F7F", "#C9C9C9", "#882255"
ANOMALY = VERMILLION
KEPT = {True: SKY, False: WINE}
# Each has a lightness of its own, so that a print in greys tells them apart too.
ROLES = {"reference": "#ADADAD", "query": BLUE}
SPLITS = {"train": "#ADADAD", "validation": PURPLE, "calibration": GREEN, "query": BLUE}
# The first six are theirs. Each further one is the colour farthest from all before it, from grey,
# white and ANOMALY under normal vision, protanopia, deuteranopia and tritanopia (CAM02-UCS): the
# nearest two of the 20 are 10 apart, of the first 12 they are 11 apart.
CATEGORIES = (
    *(BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, "#6D0000", "#493149", "#24249E", "#924931"),
    *("#6D556D", "#9EDB92", "#31E7FF", "#9279FF", "#79B66D", "#613131", "#3D31DB", "#C29E9E"),
    *("#AA6D49", "#C22492"),
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

DESCRIPTION = {"pdf": "Subject", "svg": "Description", "png": "Description"}

# Each machine lacks some of the fonts in the list; a warning for each text says nothing new.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


@contextmanager
def style():
    """Matplotlib's defaults with the house style on top; also a decorator, ``@style()``."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(mosaic: list[list], height: float, **layout) -> tuple[Figure, dict[str, Axes]]:
    """A figure ``height`` mm high with the named panels; call it within the style."""
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05, wspace=0.04, hspace=0.05)
    axes = figure.subplot_mosaic(mosaic, empty_sentinel=".", **layout)
    width = COLUMN if len(axes) == 1 else PAGE
    figure.set_size_inches(width / MM_PER_INCH, min(height, MAX_HEIGHT) / MM_PER_INCH)
    return figure, axes


def letter_panels(axes: Iterable[Axes]) -> None:
    """Put a, b, c ... before the panels' titles, as journals want them; none on a lone panel."""
    axes = list(axes)
    for letter, ax in zip(
        "abcdefghijklmnopqrstuvwxyz", axes if len(axes) > 1 else [], strict=False
    ):
        title = ax.get_title(loc="left")
        ax.set_title(f"$\\mathbf{{{letter}}}$  {title}".rstrip(), loc="left")


def rows_height(n_rows: int, least: float = 45.0) -> float:
    """Height in mm of a panel that lists ``n_rows`` samples below each other, at most MAX_ROWS."""
    n_rows = min(n_rows, MAX_ROWS)
    height = ROW_HEIGHT if n_rows > MAX_TALL_ROWS else 2 * ROW_HEIGHT
    return max(least, 18.0 + height * n_rows)


def first_rows(names: Iterable[str], worth: Mapping[str, float]) -> list[str]:
    """At most MAX_ROWS of the names, those of the largest ``worth``, in the order they came."""
    names = list(names)
    # Stable: of equals those that came first.
    chosen = set(sorted(names, key=lambda name: -worth[name])[:MAX_ROWS])
    return [name for name in names if name in chosen]


def shorten(name: object, length: int = 22) -> str:
    """A name that fits an axis: the middle of a long one becomes an ellipsis; $ is no formula."""
    text = str(name)
    if len(text) > length:
        head = (length - 1) // 2
        text = f"{text[:head]}…{text[-(length - 1 - head) :]}"
    return text.replace("$", r"\$")


def _natural(name: str) -> list:
    """Sort key that puts donor9 before donor10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def category_colours(values: pd.Series, most: int = 12) -> dict[str, str]:
    """A colour for each category, the largest first; past ``most`` the rest share ``other``.

    It is the same in every figure that gives all ``values`` of the run, not only those it shows.
    """
    sizes = values.astype(str).value_counts()
    sizes = sizes.sort_index().sort_values(ascending=False, kind="stable")
    names = sizes.index if len(sizes) <= most else sizes.index[: most - 1]
    names = sorted(names, key=_natural)
    colours = dict(zip(names, CATEGORIES, strict=False))
    if len(sizes) > most:
        colours[OTHER] = LIGHT_GREY
    return colours


def scatter(ax: Axes, x, y, **style) -> PathCollection:
    """Points without outlines, the smaller the more there are; options as ``Axes.scatter``."""
    size = float(np.clip(4000 / max(len(x), 1), 0.6, 8))
    return ax.scatter(x, y, **({"s": size, "linewidths": 0} | style))


def colours_of(categories: pd.Series, colours: Mapping[str, str]) -> np.ndarray:
    """The colour of each value, grey where it has none (values, 4)."""
    codes, names = pd.factorize(categories)
    return to_rgba_array([colours.get(name, LIGHT_GREY) for name in names] + [LIGHT_GREY])[codes]


def plain_number(value: float, _=None) -> str:
    """1.5 M, 20,000, −3 and 0.00001, never 1e+06 or −0; also as a tick formatter."""
    size = abs(value)
    text = f"{size / 1e6:g} M" if size >= 1e6 else f"{size:,.0f}" if size >= 1e3 else f"{size:g}"
    if "e-" in text:
        text = f"{size:.10f}".rstrip("0").rstrip(".")
    return f"−{text}" if value < 0 else text


def log_axis(axis) -> None:
    """A logarithmic axis whose labels are plain numbers and do not run into each other."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    if high < 1.5 * low:  # equal values: a range on which they can be placed
        low, high = low / 1.25, high * 1.25
        axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})
    decades = np.log10(high / low)
    steps = (1.0, 2.0, 5.0) if decades > 0.9 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    if decades > 1.4:
        steps = (1.0,) if decades > 2.5 else (1.0, 3.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=7))
    axis.set_major_formatter(FuncFormatter(plain_number))
    axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=12))
    axis.set_minor_formatter(NullFormatter())


def jitter_rows(ax: Axes, row: np.ndarray, value: np.ndarray, rng, **style) -> None:
    """Every value as a point in its row, moved up or down at random so that few hide each other."""
    if len(value):
        fade = float(np.clip(400 / np.bincount(row).max(), 0.08, 0.8))
        scatter(ax, value, row + rng.uniform(-0.3, 0.3, len(row)), **({"alpha": fade} | style))


def box_rows(ax: Axes, row: np.ndarray, value: np.ndarray) -> None:
    """A box in each row: quartiles and median, whiskers at 5 and 95 %."""
    large = np.flatnonzero(np.bincount(row) >= 5)  # quartiles of fewer say nothing
    if not len(large):
        return
    line = {"color": BLACK, "linewidth": 0.6}
    ax.boxplot(
        [value[row == i] for i in large],
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


def headroom(ax: Axes, share: float) -> None:
    """Leave the upper ``share`` of a panel to its legend, where no datum can lie under it."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, low + (high - low) / (1 - share))


def numbered(n: int, of: str) -> str:
    """1 sample, 2 samples, 1,234 cells; ``of``: the plural."""
    return f"{n:,} {of.removesuffix('s') if n == 1 else of}"


def say(ax: Axes, text: str) -> None:
    """A panel that has nothing to show says why, instead of standing empty."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY)
    ax.set_axis_off()


def panels_table(panels: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The source data of a figure: the panels' tables below each other, NA where not theirs."""
    tables = [table.assign(panel=letter) for letter, table in panels.items() if len(table)]
    if not tables:
        return pd.DataFrame({"panel": []})
    stacked = pd.concat(tables, ignore_index=True)
    return stacked[["panel", *[name for name in stacked.columns if name != "panel"]]]


def rasterise(figure: Figure) -> None:
    """Where a figure has more than MAX_VECTOR_MARKS points, its large sets become an image."""
    sets = [artist for ax in figure.axes for artist in ax.collections]
    sizes = [
        len(points.get_offsets()) if isinstance(points, PathCollection) else 0 for points in sets
    ]
    if sum(sizes) > MAX_VECTOR_MARKS:
        for points, size in zip(sets, sizes, strict=True):
            points.set_rasterized(size > FEW_MARKS)


@style()
def save_figure(figure: Figure, table: pd.DataFrame, alt: str, outputs) -> None:
    """Write ``outputs.pdf``, ``.svg``, ``.png`` (300 dpi), the source data ``.table``, ``.alt``.

    ``alt``: what the figure shows, in a few sentences with its numbers, for who cannot see it. It
    is also in the metadata of each file.
    """
    rasterise(figure)
    # Laid out once: the three files are alike, and it takes longer than to write one.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for kind in ("pdf", "svg", "png"):
        metadata = NO_DATES[kind] | {"Title": Path(outputs.pdf).stem, DESCRIPTION[kind]: alt}
        write_atomically(
            getattr(outputs, kind),
            lambda path, kind=kind, metadata=metadata: figure.savefig(
                path, format=kind, metadata=metadata
            ),
        )
    write_tsv(table, outputs.table)
    write_atomically(outputs.alt, lambda path: path.write_text(alt + "\n", encoding="utf-8"))
