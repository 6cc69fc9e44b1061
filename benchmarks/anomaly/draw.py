"""The benchmark's figure: every method on every set, ours in front."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from judge import ORACLE, OURS, RANKED, peers_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))
from figure_style import ANOMALY, BLACK, GREY, NO_DATES, new_figure, style

TITLES = {"auroc": "AUROC", "auprc": "AUPRC", "recall": "Recall at FDR 10 %"}
ROW = 4.2  # mm a set


@style()
def draw(table: pd.DataFrame, path: Path) -> None:
    """``path``.svg and .png: a row a set, a panel a measure.

    Grey: each peer's mean over the splits, the best circled. Orange: ours, with the range of the
    splits. Tick: the supervised oracle.
    """
    sets = list(dict.fromkeys(table["set"]))
    figure, axes = new_figure([RANKED], 22 + ROW * len(sets), sharey=True)
    place = {name: i for i, name in enumerate(sets)}
    for measure, ax in axes.items():
        means = table.groupby(["set", "method"])[measure].mean().reset_index()
        y = means["set"].map(place)
        is_peer = means.index.isin(peers_of(means).index)
        ax.scatter(means[measure][is_peer], y[is_peer], s=5, c=GREY, alpha=0.5, linewidths=0)
        best = means[is_peer].groupby("set")[measure].max()
        ring = {"s": 14, "facecolors": "none", "edgecolors": BLACK, "linewidths": 0.5}
        ax.scatter(best, best.index.map(place), label="best peer of the set", **ring)
        oracle = means[means["method"] == ORACLE].dropna()
        knows = {"marker": "|", "s": 22, "c": BLACK, "linewidths": 0.8}
        ax.scatter(oracle[measure], oracle["set"].map(place), label="supervised oracle", **knows)
        ours = table[table["method"] == OURS].groupby("set")[measure].agg(["mean", "min", "max"])
        rows = ours.index.map(place)
        ax.hlines(rows, ours["min"], ours["max"], color=ANOMALY, linewidth=0.9)
        ax.scatter(ours["mean"], rows, s=16, c=ANOMALY, zorder=3, label="anomics, range of splits")
        ax.set(title=TITLES[measure], xlim=(-0.02, 1.02), xticks=np.linspace(0, 1, 6))
        ax.grid(axis="y", linewidth=0.3, color=GREY, alpha=0.4)
    first = axes[RANKED[0]]
    first.axvline(0.5, color=GREY, linewidth=0.5, linestyle=":")
    first.set_yticks(range(len(sets)), [name.replace("_", " ") for name in sets])
    first.set_ylim(len(sets) - 0.4, -0.6)
    handles, labels = axes["auroc"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    for kind in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{kind}"), metadata=NO_DATES[kind])
