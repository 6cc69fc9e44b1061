"""Figure ``training``: how the fit went, and whether it ended after the KL warm-up."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from figure_style import (
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    SPLITS,
    headroom,
    letter_panels,
    new_figure,
    numbered,
    panels_table,
    plain_number,
    save_figure,
    say,
    style,
)
from job import job, read_json

LEGEND = 0.4  # share of the height of the first panel, below the curves
DEPTHS = LinearSegmentedColormap.from_list("depths", [LIGHT_GREY, BLUE])


def elbo_limits(history: pd.DataFrame) -> tuple[float, float]:
    """The y range that shows the end of the fit: the first tenth of it may leave the panel."""
    columns = ["train_elbo", "validation_elbo"]
    late = history.loc[history["step"] >= 0.1 * history["step"].max(), columns].to_numpy()
    late = late[np.isfinite(late)]
    if not len(late):
        return -1.0, 0.0
    margin = max(0.08 * np.ptp(late), 1e-3 * abs(late.max()), 1e-6)
    return float(late.min() - margin), float(late.max() + margin)


def _draw_line(ax: Axes, x: pd.Series, y: pd.Series, **style) -> None:
    """A line through the finite values; a lone one is a point, or it would not be seen."""
    seen = np.isfinite(y)
    marker = "o" if seen.sum() < 2 else None
    ax.plot(x[seen], y[seen], marker=marker, **style)


def _mark_steps(ax: Axes, summary: dict) -> None:
    for key, label, line in (
        ("warmup_ends_at_step", "warm-up ends", ":"),
        ("best_step", "best step", "--"),
    ):
        if summary.get(key) is not None:
            # Above the legend.
            label = f"{label} ({summary[key]:,})"
            ax.axvline(summary[key], LEGEND, color=GREY, lw=0.7, ls=line, label=label)


def _draw_kl(ax: Axes, kl: pd.DataFrame) -> None:
    if not len(kl):
        say(ax, "no KL was recorded")
        return
    by_dimension = kl.pivot(index="step", columns="dimension", values="kl")
    last = by_dimension.iloc[-1]
    top = max(float(last.max()), 1e-9)
    for dimension in last.sort_values().index:
        line = by_dimension[dimension]
        steps = by_dimension.index.to_series()
        _draw_line(ax, steps, line, color=DEPTHS(last[dimension] / top), lw=0.7)
    ax.set_ylim(bottom=0)
    headroom(ax, 0.16)
    note = f"{len(last)} latent dimensions\ndarker: more KL at the end"
    ax.text(0.98, 0.99, note, transform=ax.transAxes, ha="right", va="top", fontsize=5.5)


def _draw_use(ax: Axes, history: pd.DataFrame) -> None:
    """Mutual information on the left axis, active units on the right one."""
    step = history["step"]
    _draw_line(ax, step, history["mutual_information"], color=BLUE, label="mutual information")
    ax.set_ylim(0, max(1.05 * float(history["mutual_information"].max()), 0.1))
    headroom(ax, 0.2)
    ax.set_ylabel("I(x; z) (nats)")
    right = ax.twinx()
    _draw_line(right, step, history["active_units"], color=ORANGE, ls="--", label="active units")
    right.set_ylim(0, max(1.05 * float(history["active_units"].max()), 1))
    headroom(right, 0.2)
    right.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    right.set_ylabel("Active units (dimensions)")
    right.spines["right"].set_visible(True)
    lines = [*ax.get_lines(), *right.get_lines()]
    ax.legend(lines, [line.get_label() for line in lines], loc="upper right")


def _describe(history: pd.DataFrame, kl: pd.DataFrame, summary: dict, observations: str) -> str:
    """The alt text: how far the ELBO rose, where the best step was, what of z is in use."""
    one = observations.removesuffix("s")
    text = f"Training over {numbered(int(history['step'].max()), 'optimiser steps')}."
    for column, of in (("train", "training"), ("validation", "validation")):
        elbo = history[f"{column}_elbo"].dropna()
        if len(elbo):
            text += f" The ELBO of {of} {observations} ends at {elbo.iloc[-1]:.1f} nats per {one}."
    if summary.get("best_step") is not None:
        text += f" The model of step {summary['best_step']:,} was kept."
    if summary.get("warmup_ends_at_step") is not None:
        text += f" The KL warm-up ended at step {summary['warmup_ends_at_step']:,}."
    if len(kl):
        last = kl.loc[kl["step"] == kl["step"].max(), "kl"]
        text += f" At the end {(last > 0.05).sum()} of {len(last)} latent dimensions have a KL "
        text += f"above 0.05 nats, the largest {last.max():.2f}."
    last = history.iloc[-1]
    return (
        f"{text} Mutual information {last['mutual_information']:.2f} nats, "
        f"{last['active_units']:.0f} active units."
    )


@style()
def draw(
    history: pd.DataFrame, kl: pd.DataFrame, summary: dict, observations: str = "cells"
) -> tuple[Figure, pd.DataFrame, str]:
    """ELBO of training and validation cells, weight of the KL term, KL a dimension, use of z.

    ``observations``: what a row of the counts is, cells or samples.
    """
    one = observations.removesuffix("s")
    panels = [["elbo", "beta", "kl", "use"]]
    figure, axes = new_figure(panels, 56, width_ratios=[1.3, 0.75, 1.05, 1.0])
    ax = axes["elbo"]
    step = history["step"]
    n = {name: f"{summary[key]:,}" if key in summary else "?" for name, key in
         (("train", "n_train"), ("validation", "n_validation"))}  # fmt: skip
    _draw_line(
        ax, step, history["train_elbo"], color=SPLITS["train"], label=f"train (n = {n['train']})"
    )
    label = f"validation (n = {n['validation']})"
    _draw_line(ax, step, history["validation_elbo"], color=SPLITS["validation"], label=label)
    _mark_steps(ax, summary)
    ax.yaxis.set_major_formatter(FuncFormatter(plain_number))
    low, high = elbo_limits(history)
    ax.set_ylim(low - (high - low) * LEGEND / (1 - LEGEND), high)
    ax.set(title="Evidence lower bound", ylabel=f"ELBO (nats per {one})")
    ax.legend(loc="lower right")
    _draw_line(axes["beta"], step, history["beta"], color=GREEN)
    axes["beta"].set(title="Weight of the KL term", ylabel="β")
    axes["beta"].set_ylim(-0.04, max(1.08, 1.08 * history["beta"].max()))
    _draw_kl(axes["kl"], kl)
    axes["kl"].set(title="KL of each dimension", ylabel=f"KL to the prior (nats per {one})")
    _draw_use(axes["use"], history)
    axes["use"].set(title="Use of the latent space")
    for panel in axes.values():
        panel.set_xlabel("Optimiser step")
        panel.set_xlim(0, max(float(step.max()), 1.0) * 1.02)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.xaxis.set_major_formatter(FuncFormatter(plain_number))
    letter_panels(axes.values())
    tables = panels_table({"history": history, "kl": kl})
    return figure, tables, _describe(history, kl, summary, observations)


if __name__ == "__main__":
    with job(snakemake) as log:
        history = pd.read_parquet(snakemake.input.history)
        kl = pd.read_parquet(snakemake.input.kl)
        summary = read_json(snakemake.input.summary)
        drawn = draw(history, kl, summary, snakemake.params.observations)
        save_figure(*drawn, snakemake.output)
        log.info("%d rows of history", len(history))
