"""Figure ``anomalies``: are the p-values sound, does depth matter, which samples hold the hits."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import beta, norm

from figure_style import (
    ANOMALY,
    BLUE,
    GREY,
    LIGHT_GREY,
    SPLITS,
    letter_panels,
    list_rows,
    log_axis,
    new_figure,
    panels_table,
    rows_height,
    save_figure,
    say,
    scatter,
    style,
)
from job import job, read_json


def wilson_interval(k, n, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval for a proportion of ``k`` in ``n`` (doi:10.1080/01621459.1927.10502953).

    (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = k/n.
    """
    k, n = np.asarray(k, float), np.asarray(n, float)
    z = norm.ppf(0.5 + level / 2)
    p = k / n
    middle = p + z**2 / (2 * n)
    spread = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # At k = 0 and k = n the limits are 0 and 1; rounding must not push them past.
    return np.clip((middle - spread) / scale, 0, p), np.clip((middle + spread) / scale, p, 1)


def per_sample(query: pd.DataFrame) -> pd.DataFrame:
    """Flagged and query cells of each sample, their share and its 95 % Wilson interval."""
    counts = query.groupby("sample", sort=False)["is_anomaly"].agg(["sum", "size"])
    table = pd.DataFrame({"sample": counts.index.astype(str)})
    table["n_flagged"] = counts["sum"].to_numpy(int)
    table["n_query"] = counts["size"].to_numpy(int)
    table["share"] = table["n_flagged"] / table["n_query"]
    table["low"], table["high"] = wilson_interval(table["n_flagged"], table["n_query"])
    return table


def quantiles(p_values: np.ndarray) -> pd.DataFrame:
    """Observed p-values against those expected of n uniform ones, with the 95 % band at each.

    The i-th smallest of n uniforms is Beta(i, n + 1 - i); the bands hold for each point alone.
    """
    n = len(p_values)
    i = np.arange(1, n + 1)
    return pd.DataFrame(
        {
            "expected": i / (n + 1),
            "observed": np.sort(p_values),
            "low": beta.ppf(0.025, i, n + 1 - i),
            "high": beta.ppf(0.975, i, n + 1 - i),
        }
    )


def _draw_histogram(ax: Axes, p_values: np.ndarray) -> pd.DataFrame:
    n_bins = int(np.clip(len(p_values) // 10, 5, 20))
    counts, edges = np.histogram(p_values, np.linspace(0, 1, n_bins + 1))
    ax.stairs(counts, edges, fill=True, color=BLUE, alpha=0.7)
    uniform = len(p_values) / n_bins
    ax.axhline(uniform, color="black", lw=0.7, ls="--", label="if no cell were odd")
    ax.set(title=f"p-values (n = {len(p_values):,})", xlabel="p-value", ylabel="Query cells")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, max(counts.max(), uniform) * 1.2)
    ax.legend(loc="upper right")
    return pd.DataFrame({"from": edges[:-1], "to": edges[1:], "n_cells": counts})


def _draw_quantiles(ax: Axes, table: pd.DataFrame, smallest: float | None) -> None:
    minus_log = -np.log10(table)
    ax.fill_between(
        minus_log["expected"], minus_log["low"], minus_log["high"], color=LIGHT_GREY, alpha=0.6,
        lw=0, label="95 % band, point by point",
    )  # fmt: skip
    top = minus_log["expected"].max()
    ax.plot([0, top], [0, top], color="black", lw=0.6)
    scatter(ax, minus_log["expected"], minus_log["observed"], s=3, c=BLUE)
    if smallest:
        ax.axhline(-np.log10(smallest), color=GREY, lw=0.7, ls=":", label="smallest p possible")
    ax.set(title="Against uniform p-values")
    ax.set(xlabel=r"Expected $-\log_{10}$ p", ylabel=r"Observed $-\log_{10}$ p")
    ax.set_ylim(0, ax.get_ylim()[1] * 1.3)
    ax.legend(loc="upper left")


def _draw_depth(ax: Axes, cells: pd.DataFrame) -> None:
    is_flagged = (cells["split"] == "query") & cells["is_anomaly"]
    # In random order, so that neither calibration nor query cells hide the other.
    rest = cells[~is_flagged].sample(frac=1, random_state=0)
    scatter(ax, rest["library_size"], rest["score"], c=list(rest["split"].map(SPLITS)), alpha=0.8)
    scatter(ax, *cells.loc[is_flagged, ["library_size", "score"]].to_numpy().T, c=ANOMALY, zorder=3)
    for split in ("calibration", "query"):
        n = int((rest["split"] == split).sum())
        ax.scatter([], [], s=8, color=SPLITS[split], label=f"{split} (n = {n:,})")
    label = f"query, flagged (n = {int(is_flagged.sum()):,})"
    ax.scatter([], [], s=8, color=ANOMALY, label=label)
    log_axis(ax.xaxis)
    ax.set(xlabel="Library size (molecules per cell)", ylabel="Anomaly score")
    ax.set(title="Score against depth")
    # On the line of the title, where no cell can lie.
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, columnspacing=1.0)


def _draw_samples(ax: Axes, table: pd.DataFrame) -> None:
    place = np.arange(len(table))
    error = 100 * np.array([table["share"] - table["low"], table["high"] - table["share"]])
    ax.errorbar(100 * table["share"], place, xerr=error, fmt="o", color=ANOMALY, ecolor=GREY,
                elinewidth=0.8, capsize=1.5)  # fmt: skip
    rows = zip(table["n_flagged"], table["n_query"], strict=True)
    list_rows(ax, list(table["sample"]), [f"{k:,} of {n:,}" for k, n in rows])
    # A sample at 0 % must not have its point cut in half by the edge.
    right = 100 * float(table["high"].max())
    ax.set_xlim(-0.03 * right, 1.05 * right)
    ax.set(title="Flagged in each sample", xlabel="Share of query cells (%), 95 % interval")


@style()
def draw(cells: pd.DataFrame, summary: dict) -> tuple[Figure, pd.DataFrame, str]:
    """``cells``: anomaly/cells.parquet (calibration and query cells); ``summary``: its stage's."""
    query = cells[cells["split"] == "query"]
    samples = per_sample(query)
    is_long = len(samples) > 6
    height = max(105.0, rows_height(len(samples)) if is_long else 0)
    mosaic = [
        ["histogram", "quantiles", "samples"],
        ["depth", "depth", "samples" if is_long else "depth"],
    ]
    ratios = {"width_ratios": [1, 1, 1.1], "height_ratios": [1, 1.05]}
    figure, axes = new_figure(mosaic, height, **ratios)
    p_values = query["p_value"].dropna().to_numpy()
    tables = {}
    if len(p_values):
        tables["a"] = _draw_histogram(axes["histogram"], p_values)
        tables["b"] = quantiles(p_values)
        _draw_quantiles(axes["quantiles"], tables["b"], summary.get("smallest_p"))
        _draw_samples(axes["samples"], samples)
    else:
        for name in ("histogram", "quantiles", "samples"):
            say(axes[name], "no query cells")
    columns = ["cell_id", "split", "library_size", "score", "is_anomaly"]
    tables["c"] = cells[columns]
    tables["d"] = samples
    _draw_depth(axes["depth"], cells)
    letter_panels(axes[name] for name in ("histogram", "quantiles", "depth", "samples"))
    alt = f"{int(query['is_anomaly'].sum()):,} of {len(query):,} query cells are flagged."
    return figure, panels_table(tables), alt


if __name__ == "__main__":
    with job(snakemake) as log:
        cells = pd.read_parquet(snakemake.input.cells)
        summary = read_json(snakemake.input.summary)
        save_figure(*draw(cells, summary), snakemake.output)
        log.info("%d cells", len(cells))
