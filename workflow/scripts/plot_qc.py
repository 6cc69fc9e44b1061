"""Figure ``qc``: what quality control saw in each sample, what it kept, and at which limits."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figure_style import (
    KEPT,
    OF_TABLE,
    box_rows,
    first_rows,
    jitter_rows,
    letter_panels,
    list_rows,
    log_axis,
    new_figure,
    numbered,
    panels_table,
    rows_height,
    save_figure,
    style,
)
from job import job, read_json

# quantity: title, axis, whether it is logarithmic, the settings that limit it
QUANTITIES = {
    "total_counts": ("Total counts", "Counts per {one}", True, ("min_counts", "max_counts")),
    "n_genes": ("Genes seen", "Genes per {one}", True, ("min_genes", "max_genes")),
    "pct_mito": ("Mitochondrial share", "Share of counts (%)", False, ("max_pct_mito",)),
}
MARKS = {True: {"marker": "o"}, False: {"marker": "x", "linewidths": 0.5}}


def read_limits(path: str | Path) -> dict[str, float]:
    """The limits one sample was filtered by, from its summary; those switched off are left out."""
    limits = read_json(path).get("limits", {})
    numbers = {
        name: limit.get("value") if isinstance(limit, dict) else limit
        for name, limit in limits.items()
    }
    return {name: float(number) for name, number in numbers.items() if number is not None}


def _draw_quantity(ax: Axes, qc: pd.DataFrame, samples: list[str], quantity: str, limits) -> None:
    _, _, is_log, settings = QUANTITIES[quantity]
    rng = np.random.default_rng(0)
    qc = qc[qc["sample"].isin(samples) & qc[quantity].notna()]
    row = pd.Index(samples).get_indexer(qc["sample"])
    # A logarithmic axis has no place for the empty cell: it stands at one half.
    value = (qc[quantity].clip(lower=0.5) if is_log else qc[quantity]).to_numpy()
    is_kept = qc["kept"].to_numpy(bool)
    for chosen, of in ((is_kept, True), (~is_kept, False)):
        jitter_rows(ax, row[chosen], value[chosen], rng, color=KEPT[of], **MARKS[of])
    box_rows(ax, row[is_kept], value[is_kept])
    for i, name in enumerate(samples):
        for setting in settings:
            if setting in limits.get(name, {}):
                ax.plot([limits[name][setting]] * 2, [i - 0.42, i + 0.42], color="black", lw=0.9)
    if is_log:
        log_axis(ax.xaxis)


def _describe(qc: pd.DataFrame, kept: pd.DataFrame, observations: str) -> str:
    """The alt text: how many of what were kept, their medians, and which sample lost most."""
    passed = qc[qc["kept"]]
    text = (
        f"Quality control of {numbered(len(qc), observations)} in "
        f"{numbered(len(kept), OF_TABLE[observations] + 's')}: {len(passed):,} were kept, "
        f"{len(qc) - len(passed):,} dropped."
    )
    if len(passed):
        counts, genes = (passed[name].median() for name in ("total_counts", "n_genes"))
        text += (
            f" The kept {observations} have a median of {counts:,.0f} counts and {genes:,.0f} genes"
        )
        has_mito = passed["pct_mito"].notna().any()
        text += f", {passed['pct_mito'].median():.1f} % mitochondrial." if has_mito else "."
    if len(passed) < len(qc) and len(kept) > 1:
        share = kept["sum"] / kept["size"]
        text += f" Fewest were kept in {share.idxmin()}: {100 * share.min():.0f} %."
    return text


@style()
def draw(
    qc: pd.DataFrame, limits: dict[str, dict[str, float]], observations: str = "cells"
) -> tuple[Figure, pd.DataFrame, str]:
    """A row a sample, a panel a quantity; bars across a row are the limits that cut it.

    ``observations``: what a row of the counts is, cells or samples. Of more samples than fit a
    page those are shown that lost the largest share.
    """
    qc = qc.assign(sample=qc["sample"].astype(str))
    kept = qc.groupby("sample", sort=False)["kept"].agg(["sum", "size"])
    samples = first_rows(kept.index, 1 - kept["sum"] / kept["size"])
    # Without such genes in the input there is nothing to show.
    quantities = [name for name in QUANTITIES if qc[name].notna().any()]
    figure, axes = new_figure([quantities], rows_height(len(samples)), gridspec_kw={"wspace": 0.08})
    for i, (quantity, ax) in enumerate(axes.items()):
        title, label, *_ = QUANTITIES[quantity]
        _draw_quantity(ax, qc, samples, quantity, limits)
        ax.set_xlabel(label.format(one=observations.removesuffix("s")))
        if i == 0:
            notes = [f"{kept['sum'][name]:,} of {kept['size'][name]:,} kept" for name in samples]
            list_rows(ax, samples, notes)
        else:
            list_rows(ax, [""] * len(samples), [""] * len(samples))
        ax.set_title(title)
    letter_panels(axes.values())
    ax = axes[quantities[0]]
    for is_kept, label in ((True, "kept"), (False, "dropped")):
        n = int((qc["kept"] == is_kept).sum())
        point = {"color": KEPT[is_kept], "label": f"{label} (n = {n:,})"}
        ax.scatter([], [], s=8, **MARKS[is_kept], **point)
    if any(name in limits for name in samples):
        ax.plot([], [], color="black", lw=0.9, label="limit")
    few = f"{len(samples)} of {len(kept)} {OF_TABLE[observations]}s, those with fewest kept"
    figure.legend(
        *ax.get_legend_handles_labels(),
        title=few if len(samples) < len(kept) else None,
        loc="outside lower center",
        ncols=3,
    )
    limit_rows = [
        {"sample": sample, "limit": name, "value": value}
        for sample, named in sorted(limits.items())
        for name, value in named.items()
    ]
    cells = qc[["sample", "cell", *QUANTITIES, "kept", "reasons"]]
    table = panels_table({"cells": cells, "limits": pd.DataFrame(limit_rows)})
    return figure, table, _describe(qc, kept, observations)


if __name__ == "__main__":
    with job(snakemake) as log:
        table = pd.concat([pd.read_parquet(path) for path in snakemake.input.qc])
        limits = {
            Path(path).name.removesuffix(".summary.json"): read_limits(path)
            for path in snakemake.input.summaries
        }
        drawn = draw(table.reset_index(drop=True), limits, snakemake.params.observations)
        save_figure(*drawn, snakemake.output)
        log.info("%d cells of %d samples", len(table), len(limits))
