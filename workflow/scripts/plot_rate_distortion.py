"""Figure ``rate_distortion``: what a nat of latent information buys, and which beta was chosen."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figure_style import (
    BLUE,
    GREY,
    ORANGE,
    headroom,
    letter_panels,
    new_figure,
    numbered,
    panels_table,
    save_figure,
    style,
)
from job import job, read_json, read_tsv


def _mark(ax: Axes, x: pd.Series, y: pd.Series, curve: pd.DataFrame) -> None:
    """Chosen, on and above the envelope, each named once, with its beta beside it."""
    for chosen, on, mark, colour, fill, label in (
        (True, None, "D", ORANGE, ORANGE, "chosen β"),
        (False, True, "o", BLUE, BLUE, "on the envelope"),
        (False, False, "o", GREY, "white", "above it"),
    ):
        rows = curve["chosen"] == chosen
        if on is not None:
            rows &= curve["on_envelope"] == on
        if rows.any():
            ax.plot(x[rows], y[rows], mark, color=colour, markerfacecolor=fill, label=label, ms=3.5)


def _draw_curve(ax: Axes, curve: pd.DataFrame) -> None:
    envelope = curve[curve["on_envelope"]].sort_values("rate")
    ax.plot(envelope["rate"], envelope["distortion"], color=BLUE, lw=0.8, zorder=1)
    _mark(ax, curve["rate"], curve["distortion"], curve)
    for row in curve.itertuples():
        ax.annotate(f"{row.beta:g}", (row.rate, row.distortion), xytext=(3, 3),
                    textcoords="offset points", fontsize=5.5)  # fmt: skip
    ax.margins(0.12)
    headroom(ax, 0.22)
    ax.legend(loc="upper right")


def _draw_elbo(ax: Axes, curve: pd.DataFrame) -> None:
    ax.axhline(0.0, color=GREY, lw=0.5, ls=":")
    ax.errorbar(curve["beta"], curve["gain"], yerr=2 * curve["gain_se"], color=GREY, lw=0.8,
                capsize=2, elinewidth=0.6, zorder=1)  # fmt: skip
    _mark(ax, curve["beta"], curve["gain"], curve)
    ax.set_xscale("log")
    ax.set_xticks(curve["beta"], [f"{beta:g}" for beta in curve["beta"]])
    ax.minorticks_off()
    ax.set(title="Held-out ELBO by β", xlabel="β, the weight of the KL term")


def _describe(curve: pd.DataFrame, observations: str) -> str:
    """The alt text: what each beta bought, and how the others' ELBO differs."""
    one = observations.removesuffix("s")
    text = f"Rate against distortion of {numbered(len(curve), 'models')}, nats per {one}."
    for row in curve.sort_values("beta").itertuples():
        text += f" β = {row.beta:g}: rate {row.rate:.1f}, distortion {row.distortion:.1f}"
        other = f", ELBO {row.gain:+.1f} ± {2 * row.gain_se:.1f} against the chosen β's"
        text += " (chosen)." if row.chosen else f"{other}."
    return text


@style()
def draw(
    curve: pd.DataFrame, summary: dict, observations: str = "cells"
) -> tuple[Figure, pd.DataFrame, str]:
    """``curve``: a row a beta, as trace_rate_distortion writes it; ``observations``: its rows."""
    one = observations.removesuffix("s")
    figure, axes = new_figure([["curve", "elbo"]], 60, width_ratios=[1.2, 1.0])
    _draw_curve(axes["curve"], curve)
    axes["curve"].set(
        title=f"Rate and distortion (n = {summary['n_validation']:,} validation {observations})",
        xlabel=f"Rate: KL to the prior (nats per {one})",
        ylabel=f"Distortion: −E log p(x|z)\n(nats per {one})",
    )
    _draw_elbo(axes["elbo"], curve)
    label = f"ELBO over the chosen β's, {one} by {one},\n± 2 s.e. (nats per {one})"
    axes["elbo"].set_ylabel(label)
    letter_panels(axes.values())
    return figure, panels_table({"curve": curve}), _describe(curve, observations)


if __name__ == "__main__":
    with job(snakemake) as log:
        curve = read_tsv(snakemake.input.curve)
        summary = read_json(snakemake.input.summary)
        save_figure(*draw(curve, summary, snakemake.params.observations), snakemake.output)
        log.info("%d betas", len(curve))
