"""Figure ``qc``: what quality control saw in each sample, what it kept, and at which limits."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figure_style import (
    ANOMALY,
    SKY,
    jitter_rows,
    letter_panels,
    list_rows,
    log_axis,
    new_figure,
    panels_table,
    rows_height,
    save_figure,
    say,
    strip_and_box,
    style,
)
from job import job, read_json

# quantity: the axis it gets, whether it is logarithmic, the settings that limit it
QUANTITIES = {
    "total_counts": ("Total counts (molecules per cell)", True, ("min_counts", "max_counts")),
    "n_genes": ("Genes seen (per cell)", True, ("min_genes", "max_genes")),
    "pct_mito": ("Mitochondrial counts (%)", False, ("max_pct_mito",)),
}


def read_limits(path: str | Path) -> dict[str, float]:
    """The limits one sample was filtered by, from its summary; those switched off are left out."""
    limits = read_json(path).get("limits", {})
    numbers = {
        name: limit.get("value") if isinstance(limit, dict) else limit
        for name, limit in limits.items()
    }
    return {name: float(number) for name, number in numbers.items() if number is not None}


def _draw_quantity(ax: Axes, qc: pd.DataFrame, samples: list[str], quantity: str, limits) -> None:
    label, is_log, settings = QUANTITIES[quantity]
    ax.set_title(label.split(" (")[0])
    ax.set_xlabel(label)
    if qc[quantity].isna().all():
        say(ax, "no such genes in the input")
        return
    rng = np.random.default_rng(0)
    # A logarithmic axis has no place for the empty cell: it stands at one half.
    values = qc[quantity].clip(lower=0.5) if is_log else qc[quantity]
    for kept, colour in ((True, SKY), (False, ANOMALY)):
        chosen = qc["kept"] == kept
        by_sample = [
            values[chosen & (qc["sample"] == name)].dropna().to_numpy() for name in samples
        ]
        if kept:
            strip_and_box(ax, by_sample, [colour] * len(samples), rng)
        else:
            jitter_rows(ax, by_sample, [colour] * len(samples), rng, alpha=0.9, s=4.0)
    for i, name in enumerate(samples):
        for setting in settings:
            if setting in limits.get(name, {}):
                ax.plot([limits[name][setting]] * 2, [i - 0.42, i + 0.42], color="black", lw=0.9)
    if is_log:
        log_axis(ax.xaxis)


@style()
def draw(qc: pd.DataFrame, limits: dict[str, dict[str, float]]) -> tuple[Figure, pd.DataFrame, str]:
    """A row a sample, a panel a quantity; bars across a row are the limits that cut it."""
    samples = list(dict.fromkeys(qc["sample"].astype(str)))
    qc = qc.assign(sample=qc["sample"].astype(str))
    figure, axes = new_figure(
        [list(QUANTITIES)], rows_height(len(samples)), gridspec_kw={"wspace": 0.08}
    )
    kept = qc.groupby("sample")["kept"].agg(["sum", "size"])
    for i, (quantity, ax) in enumerate(axes.items()):
        _draw_quantity(ax, qc, samples, quantity, limits)
        if i == 0:
            notes = [f"{kept['sum'][name]:,} of {kept['size'][name]:,} kept" for name in samples]
            list_rows(ax, samples, notes)
        else:
            list_rows(ax, [""] * len(samples), [""] * len(samples))
    letter_panels(axes.values())
    n_dropped = int((~qc["kept"]).sum())
    marks = [
        axes["n_genes"].scatter(
            [], [], s=8, color=SKY, label=f"kept (n = {len(qc) - n_dropped:,})"
        ),
        axes["n_genes"].scatter([], [], s=8, color=ANOMALY, label=f"dropped (n = {n_dropped:,})"),
        axes["n_genes"].plot([], [], color="black", lw=0.9, label="limit")[0],
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    limit_rows = [
        {"sample": sample, "limit": name, "value": value}
        for sample, named in sorted(limits.items())
        for name, value in named.items()
    ]
    cells = qc[["sample", "cell", *QUANTITIES, "kept", "reasons"]]
    alt = (
        f"Quality control of {len(qc):,} cells in {len(samples):,} samples; {n_dropped:,} dropped."
    )
    return figure, panels_table({"cells": cells, "limits": pd.DataFrame(limit_rows)}), alt


if __name__ == "__main__":
    with job(snakemake) as log:
        table = pd.concat([pd.read_parquet(path) for path in snakemake.input.qc])
        limits = {
            Path(path).name.removesuffix(".summary.json"): read_limits(path)
            for path in snakemake.input.summaries
        }
        save_figure(*draw(table.reset_index(drop=True), limits), snakemake.output)
        log.info("%d cells of %d samples", len(table), len(limits))
