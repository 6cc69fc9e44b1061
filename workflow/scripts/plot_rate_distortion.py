"""Figure ``rate_distortion``: what a nat of latent information buys, and which beta was chosen."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figure_style import (
    BLUE,
    GREY,
    VERMILLION,
    letter_panels,
    new_figure,
    panels_table,
    save_figure,
    style,
)
from job import job, read_json, read_tsv


def _mark(ax: Axes, x: pd.Series, y: pd.Series, curve: pd.DataFrame) -> None:
    """Chosen, on and above the envelope, each named once, with its beta beside it."""
    for chosen, on, colour, fill, label in (
        (True, None, VERMILLION, VERMILLION, "chosen β"),
        (False, True, BLUE, BLUE, "on the envelope"),
        (False, False, GREY, "white", "above it"),
    ):
        rows = curve["chosen"] == chosen
        if on is not None:
            rows &= curve["on_envelope"] == on
        if rows.any():
            ax.plot(x[rows], y[rows], "o", color=colour, markerfacecolor=fill, label=label, ms=3.5)


def _draw_curve(ax: Axes, curve: pd.DataFrame, n: int) -> None:
    envelope = curve[curve["on_envelope"]].sort_values("rate")
    ax.plot(envelope["rate"], envelope["distortion"], color=BLUE, lw=0.8, zorder=1)
    _mark(ax, curve["rate"], curve["distortion"], curve)
    for row in curve.itertuples():
        ax.annotate(f"{row.beta:g}", (row.rate, row.distortion), xytext=(3, 3),
                    textcoords="offset points", fontsize=5.5)  # fmt: skip
    ax.set(
        title=f"Rate and distortion (n = {n:,} validation cells)",
        xlabel="Rate: KL to the prior (nats per cell)",
        ylabel="Distortion: −E log p(x|z)\n(nats per cell)",
    )
    ax.margins(0.12)
    ax.legend(loc="upper right")


def _draw_elbo(ax: Axes, curve: pd.DataFrame) -> None:
    ax.axhline(0.0, color=GREY, lw=0.5, ls=":")
    ax.errorbar(curve["beta"], curve["gain"], yerr=2 * curve["gain_se"], color=GREY, lw=0.8,
                capsize=2, elinewidth=0.6, zorder=1)  # fmt: skip
    _mark(ax, curve["beta"], curve["gain"], curve)
    ax.set_xscale("log")
    ax.set_xticks(curve["beta"], [f"{beta:g}" for beta in curve["beta"]])
    ax.minorticks_off()
    ax.set(
        title="Held-out ELBO by β",
        xlabel="β, the weight of the KL term (no unit)",
        ylabel="ELBO over the chosen β's, cell by cell,\n± 2 s.e. (nats per cell)",
    )


@style()
def draw(curve: pd.DataFrame, summary: dict) -> tuple[Figure, pd.DataFrame, str]:
    """``curve``: a row a beta, as trace_rate_distortion writes it."""
    figure, axes = new_figure([["curve", "elbo"]], 60, width_ratios=[1.2, 1.0])
    _draw_curve(axes["curve"], curve, summary["n_validation"])
    _draw_elbo(axes["elbo"], curve)
    letter_panels(axes.values())
    alt = f"Rate and distortion of {len(curve)} models."
    return figure, panels_table({"curve": curve}), alt


if __name__ == "__main__":
    with job(snakemake) as log:
        curve = read_tsv(snakemake.input.curve)
        save_figure(*draw(curve, read_json(snakemake.input.summary)), snakemake.output)
        log.info("%d betas", len(curve))
