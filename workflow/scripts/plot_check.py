"""Figure ``check``: what this run finds of anomalies that were put into normal cells."""

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from figure_style import (
    BLUE,
    GREY,
    ORANGE,
    letter_panels,
    new_figure,
    panels_table,
    save_figure,
    say,
    shorten,
    style,
)
from job import job, read_json

METHODS = {"anomics": (BLUE, "o"), "total count": (GREY, "s"), "PCA error": (ORANGE, "^")}
MEASURES = {
    "auroc": "AUROC (0.5 = chance)",
    "power": "Power (share found)",
    "fdp": "Realised FDP",
}
# What the strength of a kind is a number of; all others have the name of theirs.
SCALES = {
    "single gene": "Shift of the gene (SD)",
    "program": "Genes, each 4-fold",
    "ambient": "Share of the counts from the soup",
}
LONG_SCALE = 4.0  # largest over smallest strength, above which the axis is logarithmic
ROW_HEIGHT, FOOT = 36.0, 16.0  # mm
POINT_WIDTH = 0.45  # of a kind of one strength, in those of a curve
DODGE = 0.025  # of the axis, between the methods; four times as much where there is no curve
NAME_WIDTH = 14  # letters in a line below a strength without a number


def draws_range(draws: pd.DataFrame) -> pd.DataFrame:
    """Mean, smallest and largest over the draws: a row a kind, strength, method and measure."""
    keys = ["kind", "strength", "value", "n_injected", "n_normal", "method"]
    long = draws.melt(keys, list(MEASURES), var_name="measure", value_name="found")
    grouped = long.groupby([*keys, "measure"], sort=False, dropna=False)["found"]
    return grouped.agg(mean="mean", low="min", high="max", n_draws="size").reset_index()


def places(of_kind: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Where each strength stands on the axis of its kind, 0 to 1; is that a scale of numbers?"""
    strengths = of_kind[["strength", "value"]].drop_duplicates("strength")
    is_scale = len(strengths) > 1 and strengths["value"].notna().all()
    at = strengths["value"] if is_scale else pd.Series(np.arange(len(strengths)), strengths.index)
    if is_scale and at.max() / at.min() > LONG_SCALE:
        at = np.log(at)
    return strengths.assign(place=(at - at.min()) / max(float(np.ptp(at)), 1e-12)), is_scale


def _draw_kind(ax: Axes, of_kind: pd.DataFrame, measure: str) -> None:
    strengths, is_scale = places(of_kind)
    place = strengths.set_index("strength")["place"]
    for i, (method, (colour, mark)) in enumerate(METHODS.items()):
        of = of_kind[(of_kind["measure"] == measure) & (of_kind["method"] == method)]
        # Three equal numbers have a mean that may be less than they are.
        error = np.maximum([of["mean"] - of["low"], of["high"] - of["mean"]], 0.0)
        dodge = (i - 1) * DODGE * (1 if is_scale else 4)
        ax.errorbar(of["strength"].map(place) + dodge, of["mean"], yerr=error,
                    fmt=f"{mark}-" if is_scale else mark, color=colour, label=method, ms=2.8,
                    elinewidth=0.6, lw=0.8)  # fmt: skip
    names = [f"{v:g}" for v in strengths["value"]] if is_scale else strengths["strength"]
    ax.set_xticks(strengths["place"], [fill(shorten(name, 40), NAME_WIDTH) for name in names])
    ax.xaxis.set_minor_locator(NullLocator())
    # One strength in the middle of its panel.
    ax.set_xlim((-0.12, 1.12) if len(strengths) > 1 else (-0.5, 0.5))
    ax.grid(axis="y", lw=0.3, color="#E5E5E5")


@style()
def draw(draws: pd.DataFrame, summary: dict) -> tuple[Figure, pd.DataFrame, str]:
    """``draws``: check.parquet, a row a draw, kind, strength and method."""
    table, alpha = draws_range(draws), summary["alpha"]
    kinds = list(table["kind"].unique()) or ["none"]
    widths = [1.0 if table.loc[table["kind"] == kind, "strength"].nunique() > 1 else POINT_WIDTH
              for kind in kinds]  # fmt: skip
    figure, axes = new_figure(
        [[f"{measure} {kind}" for kind in kinds] for measure in MEASURES],
        ROW_HEIGHT * len(MEASURES) + FOOT,
        width_ratios=widths,
    )
    top = {
        "auroc": 1.0,
        "power": 1.0,
        "fdp": max(3 * alpha, *table["high"][table["measure"] == "fdp"], 0),
    }
    for measure, label in MEASURES.items():
        for kind in kinds:
            ax = axes[f"{measure} {kind}"]
            if table.empty:
                say(ax, "too few unseen ones for a check")
                continue
            of_kind = table[table["kind"] == kind]
            _draw_kind(ax, of_kind, measure)
            ax.set_ylim(-0.04 * top[measure], 1.04 * top[measure])
            if measure == "auroc":
                ax.axhline(0.5, color=GREY, lw=0.6, ls=":")
                n = of_kind["n_injected"].iloc[0]
                ax.set_title(f"{kind.capitalize()} (n = {n})")
            if measure == "fdp":
                ax.axhline(alpha, color=GREY, lw=0.6, ls="--")
                ax.set_xlabel(SCALES.get(kind, ""))
            if kind == kinds[0]:
                ax.set_ylabel(label)
            else:
                ax.tick_params(labelleft=False)
            if measure != "fdp":
                ax.tick_params(labelbottom=False)
    if len(table):
        # Outside: any place in a panel may hold a mark.
        handles, labels = axes[f"fdp {kinds[0]}"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(METHODS))
    letter_panels(axes[f"{measure} {kinds[0]}"] for measure in MEASURES)
    panels = dict(zip("abc", (table[table["measure"] == m] for m in MEASURES), strict=True))
    return figure, panels_table(panels), alt_text(table, summary)


def alt_text(table: pd.DataFrame, summary: dict) -> str:
    """The curves in words: each kind at its strongest, this pipeline and the best baseline."""
    if table.empty:
        return "No curves: too few unseen ones for a check."
    alpha, sentences = summary["alpha"], []
    for kind, of_kind in table.groupby("kind", sort=False):
        strongest = of_kind[of_kind["strength"] == of_kind["strength"].iloc[-1]]
        found = strongest.set_index(["method", "measure"])["mean"]
        others = max(found[m, "auroc"] for m in METHODS if m != "anomics")
        sentences.append(
            f"{kind}, {strongest['strength'].iloc[0]}: AUROC {found['anomics', 'auroc']:.2f} (best "
            f"baseline {others:.2f}), power {found['anomics', 'power']:.2f}."
        )
    ours = table[(table["method"] == "anomics") & (table["measure"] == "fdp")]["mean"]
    return (
        "Curves of AUROC, power and realised false discovery proportion against the strength of "
        f"injected anomalies, for this pipeline and two baselines, means of {summary['repeats']} "
        f"draws with their range. {' '.join(sentences)} Mean realised false discovery proportion "
        f"{ours.mean():.2f} at a nominal {alpha:g}."
    )


if __name__ == "__main__":
    with job(snakemake) as log:
        draws = pd.read_parquet(snakemake.input.draws)
        save_figure(*draw(draws, read_json(snakemake.input.summary)), snakemake.output)
        log.info("%d kinds of anomaly", len(draws.drop_duplicates(["kind", "strength"])))
