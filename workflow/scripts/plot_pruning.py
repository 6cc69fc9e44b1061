"""Figure ``pruning``: the evidence for each latent dimension, and what the cut cost."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from figure_style import (
    BLUE,
    GREY,
    LIGHT_GREY,
    headroom,
    letter_panels,
    new_figure,
    numbered,
    panels_table,
    plain_number,
    save_figure,
    style,
)
from job import job, read_json, read_tsv

PANELS = {
    "kl": ("KL to the prior", "KL ± 2 s.e. (nats per {one})"),
    "ablation": ("Held-out ablation", "ELBO lost ± 2 s.e. (nats per {one})"),
}


def _draw_evidence(ax: Axes, evidence: pd.DataFrame, column: str, threshold) -> None:
    """Bars in the order of the KL: kept dimensions in blue, cut ones in grey."""
    place = np.arange(len(evidence))
    kept = evidence["kept"].to_numpy(bool)
    values = evidence[column].to_numpy(float)
    for chosen, colour, label in ((kept, BLUE, "kept"), (~kept, LIGHT_GREY, "cut")):
        if chosen.any():
            ax.bar(
                place[chosen],
                values[chosen],
                0.75,
                color=colour,
                label=f"{label} (n = {chosen.sum()})",
            )
    error = 2 * evidence[f"{column}_se"]
    ax.errorbar(place, values, yerr=error, fmt="none", ecolor=GREY, elinewidth=0.6)
    ax.axhline(0, color="black", lw=0.5)
    # One that all pass by far, as in a bulk run, would leave the bars no room.
    if threshold is not None and threshold > values.min() - np.ptp(values):
        ax.axhline(threshold, color="black", lw=0.7, ls="--", label=f"threshold {threshold:g}")
    every = int(np.ceil(len(place) / 20)) if len(place) else 1
    ax.set_xticks(place[::every], evidence["dimension"].to_numpy()[::every])
    ax.tick_params(axis="x", length=0)
    ax.set(title=PANELS[column][0], xlabel="Latent dimension, by KL")
    ax.margins(x=0.02)
    ax.yaxis.set_major_formatter(FuncFormatter(plain_number))
    headroom(ax, 0.2)
    ax.legend(loc="upper right")


def _draw_elbo(ax: Axes, elbo: pd.DataFrame) -> None:
    place = np.arange(len(elbo))
    # Cells stay the same from stage to stage, so the bars overlap more than the change is unsure.
    ax.errorbar(place, elbo["elbo"], yerr=elbo["elbo_se"], fmt="o-", color=BLUE, capsize=2,
                ecolor=GREY, elinewidth=0.8)  # fmt: skip
    stages = zip(elbo["stage"], elbo["n_latent"], strict=True)
    labels = [f"{stage}\n{n} dims" for stage, n in stages]
    ax.set_xticks(place, labels)
    ax.set_xlim(-0.5, len(elbo) - 0.5)
    ax.yaxis.set_major_formatter(FuncFormatter(plain_number))
    ax.set_title("Before and after the cut")


def _describe(evidence: pd.DataFrame, elbo: pd.DataFrame, one: str) -> str:
    """The alt text: how many dimensions stay, what they are worth, what the cut cost."""
    kept, cut = evidence[evidence["kept"]], evidence[~evidence["kept"]]
    text = f"{len(kept)} of {numbered(len(evidence), 'latent dimensions')} are kept."
    for name, of in (("kept", kept), ("cut", cut)):
        if len(of):
            text += (
                f" Those {name} have a KL of {of['kl'].min():.2f} to {of['kl'].max():.2f} nats per "
                f"{one}; setting one to its mean costs {of['ablation'].min():.2f} to "
                f"{of['ablation'].max():.2f} nats per {one} of held-out ELBO."
            )
    ends = ", ".join(f"{row.stage} {row.elbo:.1f} ± {row.elbo_se:.1f}" for row in elbo.itertuples())
    return f"{text} Held-out ELBO: {ends} nats per {one}."


@style()
def draw(
    evidence: pd.DataFrame,
    elbo: pd.DataFrame,
    thresholds: dict[str, float],
    observations: str = "cells",
) -> tuple[Figure, pd.DataFrame, str]:
    """``thresholds``: for ``kl`` and ``ablation`` the value a dimension must pass, where known.

    ``observations``: what a row of the counts is, cells or samples.
    """
    one = observations.removesuffix("s")
    figure, axes = new_figure([["kl", "ablation", "elbo"]], 56, width_ratios=[1.2, 1.2, 0.9])
    evidence = evidence.sort_values(["kl", "dimension"], ascending=[False, True])
    for column in PANELS:
        _draw_evidence(axes[column], evidence, column, thresholds.get(column))
        axes[column].set_ylabel(PANELS[column][1].format(one=one))
    _draw_elbo(axes["elbo"], elbo)
    axes["elbo"].set_ylabel(f"Held-out ELBO ± s.e. (nats per {one})")
    letter_panels(axes.values())
    tables = panels_table({"evidence": evidence, "elbo": elbo})
    return figure, tables, _describe(evidence, elbo, one)


def read_thresholds(summary: dict) -> dict[str, float]:
    """The thresholds that the pruning used, from its summary."""
    named = {"kl": summary.get("min_kl"), "ablation": summary.get("min_ablation")}
    return {column: float(value) for column, value in named.items() if value is not None}


if __name__ == "__main__":
    with job(snakemake) as log:
        evidence = pd.read_parquet(snakemake.input.evidence)
        elbo = read_tsv(snakemake.input.elbo)
        summary = read_json(snakemake.input.summary)
        drawn = draw(evidence, elbo, read_thresholds(summary), snakemake.params.observations)
        save_figure(*drawn, snakemake.output)
        log.info("%d dimensions, %d kept", len(evidence), int(evidence["kept"].sum()))
