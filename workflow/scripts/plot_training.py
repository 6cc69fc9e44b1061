"""Figure ``training``: how the fit went, and whether it ended after the KL warm-up."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from figure_style import (
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    SPLITS,
    letter_panels,
    new_figure,
    panels_table,
    save_figure,
    say,
    style,
)
from job import job, read_json

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
            ax.axvline(
                summary[key], color=GREY, lw=0.7, ls=line, label=f"{label} ({summary[key]:,})"
            )


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
    note = f"{len(last)} latent dimensions\ndarker: more KL at the end"
    ax.text(0.98, 0.97, note, transform=ax.transAxes, ha="right", va="top", fontsize=5.5)
    ax.set_ylim(top=ax.get_ylim()[1] * 1.2)


def _draw_use(ax: Axes, history: pd.DataFrame) -> None:
    """Mutual information on the left axis, active units on the right one."""
    step = history["step"]
    _draw_line(ax, step, history["mutual_information"], color=BLUE, label="mutual information")
    ax.set_ylim(0, 1.25 * max(float(history["mutual_information"].max()), 0.1))
    ax.set_ylabel("I(x; z) (nats)")
    right = ax.twinx()
    _draw_line(right, step, history["active_units"], color=ORANGE, ls="--", label="active units")
    right.set_ylim(0, 1.25 * max(float(history["active_units"].max()), 1))
    right.set_ylabel("Active units (dimensions)")
    right.spines["right"].set_visible(True)
    lines = [*ax.get_lines(), *right.get_lines()]
    ax.legend(lines, [line.get_label() for line in lines], loc="upper right")


@style()
def draw(
    history: pd.DataFrame, kl: pd.DataFrame, summary: dict
) -> tuple[Figure, pd.DataFrame, str]:
    """ELBO of training and validation cells, weight of the KL term, KL a dimension, use of z."""
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
    ax.set_ylim(*elbo_limits(history))
    ax.set(title="Evidence lower bound", ylabel="ELBO (nats per cell)")
    ax.legend(loc="center right")
    _draw_line(axes["beta"], step, history["beta"], color=GREEN)
    axes["beta"].set(title="Weight of the KL term", ylabel="β (no unit)")
    axes["beta"].set_ylim(-0.04, max(1.08, 1.08 * history["beta"].max()))
    _draw_kl(axes["kl"], kl)
    axes["kl"].set(title="KL of each dimension", ylabel="KL to the prior (nats per cell)")
    _draw_use(axes["use"], history)
    axes["use"].set(title="Use of the latent space")
    for panel in axes.values():
        panel.set_xlabel("Optimiser step")
        panel.set_xlim(0, max(float(step.max()), 1.0) * 1.02)
        panel.locator_params(axis="x", nbins=5)
    letter_panels(axes.values())
    alt = f"Training history of {len(history):,} looks at the ELBO."
    return figure, panels_table({"history": history, "kl": kl}), alt


if __name__ == "__main__":
    with job(snakemake) as log:
        history = pd.read_parquet(snakemake.input.history)
        kl = pd.read_parquet(snakemake.input.kl)
        summary = read_json(snakemake.input.summary)
        save_figure(*draw(history, kl, summary), snakemake.output)
        log.info("%d rows of history", len(history))
