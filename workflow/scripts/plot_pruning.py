"""Figure ``pruning``: the evidence for each latent dimension, and what the cut cost."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figure_style import (
    BLUE,
    GREY,
    LIGHT_GREY,
    letter_panels,
    new_figure,
    panels_table,
    save_figure,
    style,
)
from job import job, read_json, read_tsv

PANELS = {
    "kl": ("KL to the prior", "KL ± 2 s.e. (nats per cell)"),
    "ablation": ("Held-out ablation", "ELBO lost ± 2 s.e. (nats per cell)"),
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
    if threshold is not None:
        ax.axhline(threshold, color="black", lw=0.7, ls="--", label=f"threshold {threshold:g}")
    every = int(np.ceil(len(place) / 20)) if len(place) else 1
    ax.set_xticks(place[::every], evidence["dimension"].to_numpy()[::every])
    ax.tick_params(axis="x", length=0)
    title, label = PANELS[column]
    ax.set(title=title, ylabel=label, xlabel="Latent dimension, by KL")
    ax.set_ylim(top=max(ax.get_ylim()[1] * 1.15, 1e-6))
    ax.legend(loc="upper right")


def _draw_elbo(ax: Axes, elbo: pd.DataFrame) -> None:
    place = np.arange(len(elbo))
    # Cells stay the same from stage to stage, so the bars overlap more than the change is unsure.
    ax.errorbar(place, elbo["elbo"], yerr=elbo["elbo_se"], fmt="o-", color=BLUE, capsize=2,
                ecolor=GREY, elinewidth=0.8)  # fmt: skip
    labels = [f"{s}\n{n} dims" for s, n in zip(elbo["stage"], elbo["n_latent"], strict=True)]
    ax.set_xticks(place, labels)
    ax.set_xlim(-0.5, len(elbo) - 0.5)
    ax.set(title="Before and after the cut", ylabel="Held-out ELBO ± s.e. (nats per cell)")


@style()
def draw(
    evidence: pd.DataFrame, elbo: pd.DataFrame, thresholds: dict[str, float]
) -> tuple[Figure, pd.DataFrame, str]:
    """``thresholds``: for ``kl`` and ``ablation`` the value a dimension must pass, where known."""
    figure, axes = new_figure([["kl", "ablation", "elbo"]], 56, width_ratios=[1.2, 1.2, 0.9])
    evidence = evidence.sort_values(["kl", "dimension"], ascending=[False, True])
    for column in PANELS:
        _draw_evidence(axes[column], evidence, column, thresholds.get(column))
    _draw_elbo(axes["elbo"], elbo)
    letter_panels(axes.values())
    alt = f"{int(evidence['kept'].sum())} of {len(evidence)} latent dimensions are kept."
    return figure, panels_table({"evidence": evidence, "elbo": elbo}), alt


def read_thresholds(summary: dict) -> dict[str, float]:
    """The thresholds that the pruning used, from its summary."""
    named = {"kl": summary.get("min_kl"), "ablation": summary.get("min_ablation")}
    return {column: float(value) for column, value in named.items() if value is not None}


if __name__ == "__main__":
    with job(snakemake) as log:
        evidence = pd.read_parquet(snakemake.input.evidence)
        elbo = read_tsv(snakemake.input.elbo)
        summary = read_json(snakemake.input.summary)
        save_figure(*draw(evidence, elbo, read_thresholds(summary)), snakemake.output)
        log.info("%d dimensions, %d kept", len(evidence), int(evidence["kept"].sum()))
