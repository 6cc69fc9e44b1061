"""Figure ``anomalies``: are the p-values sound, does depth matter, which samples hold the hits."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import beta, norm

from figure_style import (
    ANOMALY,
    BLACK,
    GREY,
    OF_TABLE,
    SPLITS,
    colours_of,
    first_rows,
    headroom,
    letter_panels,
    list_rows,
    log_axis,
    new_figure,
    numbered,
    panels_table,
    plain_number,
    rows_height,
    save_figure,
    say,
    scatter,
    style,
)
from job import job, read_json
from obs_columns import read_obs

TOP = 60.0  # mm, the panels above the lists of samples and donors
BAND_POINTS = 300  # enough for a smooth band
LINES = {"query": "-", "calibration": "--"}  # so that a print in greys tells them apart
FLAGGED = "query, flagged"


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


def shares(query: pd.DataFrame, by: str) -> pd.DataFrame:
    """Flagged and query cells of each sample or donor, their share, its 95 % Wilson interval."""
    counts = query.groupby(by, sort=False)["is_anomaly"].agg(["sum", "size"])
    table = pd.DataFrame({by: counts.index.astype(str)})
    table["n_flagged"] = counts["sum"].to_numpy(int)
    table["n_query"] = counts["size"].to_numpy(int)
    table["share"] = table["n_flagged"] / table["n_query"]
    table["low"], table["high"] = wilson_interval(table["n_flagged"], table["n_query"])
    return table


def of_others(cells: pd.DataFrame) -> pd.Series:
    """p-values of the calibration cells, each ranked among those of other donors.

    p = (1 + number of those with at least its score) / (1 + number of those). Uniform if donors are
    alike; ranked among all calibration cells they are uniform whatever the data. Of other samples
    where there is one donor, or none is known; and of one sample as the pipeline has them, among
    all. Within the group that calibrated them (``calibrated_by``).
    """
    normal = cells[(cells["split"] == "calibration") & ~cells["trimmed"]]
    p_values = normal["p_value"].copy()
    for _, group in normal.groupby("calibrated_by"):
        by = next((name for name in ("donor", "sample") if group[name].nunique() > 1), None)
        for name in group[by].unique() if by else ():
            own = group[by] == name
            others = np.sort(group.loc[~own, "score"])
            n_above = len(others) - np.searchsorted(others, group.loc[own, "score"])
            p_values[own.index[own]] = (1 + n_above) / (1 + len(others))
    return p_values


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


def _draw_histogram(ax: Axes, of: dict[str, np.ndarray]) -> pd.DataFrame:
    """``of``: the p-values of each use."""
    n_bins = int(np.clip(min(map(len, of.values())) // 10, 5, 20))
    edges, tables = np.linspace(0, 1, n_bins + 1), []
    for use, p_values in of.items():
        n = np.histogram(p_values, edges)[0]
        label = f"{use} (n = {len(p_values):,})"
        line = {"color": SPLITS[use], "ls": LINES[use], "lw": 0.9}
        ax.stairs(100 * n / len(p_values), edges, baseline=None, label=label, **line)
        table = pd.DataFrame({"use": use, "from": edges[:-1], "to": edges[1:], "n": n})
        tables.append(table.assign(share=n / len(p_values)))
    ax.axhline(100 / n_bins, color=BLACK, lw=0.6, ls=":", label="expected of normal ones")
    ax.set(title="p-values", xlabel="p-value", xlim=(0, 1))
    ax.set_ylim(0, 105 * max(table["share"].max() for table in tables))
    headroom(ax, 0.3)
    ax.legend(loc="upper right")
    return pd.concat(tables)


def _draw_quantiles(ax: Axes, of: dict[str, np.ndarray], smallest: float | None) -> pd.DataFrame:
    tables = {use: quantiles(p_values) for use, p_values in of.items()}
    for use, table in tables.items():
        thinned = np.unique(np.geomspace(1, len(table), BAND_POINTS).astype(int)) - 1
        band = table.iloc[thinned]
        ax.fill_between(band["expected"], band["low"], band["high"], color=SPLITS[use],
                        alpha=0.15, lw=0)  # fmt: skip
        marker = {"marker": "o" if use == "query" else "^", "s": 4, "color": SPLITS[use]}
        scatter(ax, table["expected"], table["observed"], **marker, label=use)
    least = min(table["expected"].min() for table in tables.values())
    ax.plot([least, 1], [least, 1], color=BLACK, lw=0.6)
    ax.fill_between([], [], [], color=GREY, alpha=0.3, lw=0, label="95 % band, point by point")
    if smallest:
        label = f"smallest possible, {plain_number(float(f'{smallest:.2g}'))}"
        ax.axhline(smallest, color=GREY, lw=0.7, ls=":", label=label)
    ax.set(title="Against uniform p-values")
    ax.set(xlabel="Expected p-value", ylabel="Observed p-value")
    bottom = min(table[["low", "observed"]].min(axis=None) for table in tables.values())
    ax.set(xlim=(0.7 * least, 1.3), ylim=(0.7 * bottom, 1.3))
    for axis in (ax.xaxis, ax.yaxis):
        log_axis(axis)
    # The small ones up and right, below the legend.
    ax.set(xlim=(1.3, 0.7 * least), ylim=(1.3, (0.7 * bottom) ** (1 / 0.72)))
    ax.legend(loc="upper left")
    return pd.concat(table.assign(use=use) for use, table in tables.items())


def _draw_depth(ax: Axes, cells: pd.DataFrame, summary: dict) -> None:
    """Flagged cells on top, the others in random order, so that neither use hides the other."""
    is_flagged = cells["use"] == FLAGGED
    rest, flagged = cells[~is_flagged].sample(frac=1, random_state=0), cells[is_flagged]
    size = float(np.clip(4000 / max(len(cells), 1), 0.6, 5))
    place = rest["library_size"], rest["score"]
    scatter(ax, *place, c=colours_of(rest["use"], SPLITS), alpha=0.7, s=size)
    scatter(ax, flagged["library_size"], flagged["score"], c=ANOMALY, s=size, zorder=3)
    for use, key in (("calibration", "spearman_depth"), ("query", "spearman_depth_query")):
        n = int((rest["use"] == use).sum())
        if n:
            label = f"{use} (n = {n:,}, ρ = {plain_number(round(summary[key], 2))})"
            ax.scatter([], [], s=8, color=SPLITS[use], label=label)
    ax.scatter([], [], s=8, color=ANOMALY, label=f"{FLAGGED} (n = {len(flagged):,})")
    log_axis(ax.xaxis)
    ax.set(ylabel="Anomaly score", title="Score against depth")
    headroom(ax, 0.25)
    ax.legend(loc="upper left")


def _draw_shares(ax: Axes, table: pd.DataFrame, of: str, observations: str) -> None:
    names = first_rows(table[of], dict(zip(table[of], table["share"], strict=True)))
    shown = table.set_index(of).loc[names]
    error = 100 * np.array([shown["share"] - shown["low"], shown["high"] - shown["share"]])
    ax.errorbar(100 * shown["share"], np.arange(len(shown)), xerr=error, fmt="o", color=ANOMALY,
                ecolor=GREY, elinewidth=0.8, capsize=1.5)  # fmt: skip
    rows = zip(shown["n_flagged"], shown["n_query"], strict=True)
    list_rows(ax, names, [f"{k:,} of {n:,}" for k, n in rows])
    # A sample at 0 % must not have its point cut in half by the edge.
    right = 100 * float(shown["high"].max())
    ax.set_xlim(-0.03 * right, 1.05 * right)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel(f"Share of query {observations} flagged (%), 95 % interval")
    name = OF_TABLE[observations] if of == "sample" else of
    few = f"{len(names)} of {len(table)} {name}s, those with the largest share"
    ax.set_title(few if len(names) < len(table) else f"Flagged in each {name}")


def has_donors(cells: pd.DataFrame) -> bool:
    """Whether donors of these cells are known, and are not the samples by another name."""
    known = cells.loc[cells["donor"] != "", ["donor", "sample"]].drop_duplicates()
    return len(known) > 0 and (known["donor"].duplicated() | known["sample"].duplicated()).any()


def _describe(
    cells: pd.DataFrame, p_values: dict[str, np.ndarray], by: dict[str, pd.DataFrame],
    summary: dict, observations: str,
) -> str:  # fmt: skip
    """The alt text: hits, p-values against uniform ones, depth, the sample with the most hits."""
    query = cells[cells["split"] == "query"]
    n_flagged = int(query["is_anomaly"].sum())
    text = f"{n_flagged:,} of {numbered(len(query), 'query ' + observations)} are flagged."
    for use, values in p_values.items():
        text += (
            f" Of {len(values):,} {use} p-values {100 * (values <= 0.05).mean():.1f} % are at most "
            "0.05, where 5 % are expected of normal ones."
        )
    rho = plain_number(round(summary["spearman_depth_query"], 2))
    text += f" Score and library size of unflagged query {observations}: Spearman {rho}."
    for of, table in by.items():
        name = OF_TABLE[observations] if of == "sample" else of
        if len(table) > 1 and n_flagged:
            top = table.loc[table["share"].idxmax()]
            text += (
                f" Of {len(table)} {name}s {top[of]} has the largest share flagged, "
                f"{100 * top['share']:.1f} % (95 % interval {100 * top['low']:.1f} to "
                f"{100 * top['high']:.1f} %)."
            )
    return text


@style()
def draw(
    cells: pd.DataFrame, summary: dict, observations: str = "cells"
) -> tuple[Figure, pd.DataFrame, str]:
    """``cells``: anomaly/cells.parquet (calibration and query cells) with ``donor``, "" if unknown.

    ``summary``: that of the same stage; ``observations``: what a row is, cells or samples.
    """
    is_flagged = (cells["split"] == "query") & cells["is_anomaly"]
    cells = cells.assign(use=cells["split"].astype(str).mask(is_flagged, FLAGGED))
    query = cells[cells["split"] == "query"]
    of = ["sample", *(["donor"] if has_donors(query) else [])]
    by = {name: shares(query[query[name] != ""], name) for name in of}
    # The lists of samples and of donors side by side below the other panels.
    height = rows_height(max(len(table) for table in by.values()), 26.0)
    mosaic = [[[["histogram", "quantiles", "depth"]]], [[of]]]  # each row with columns of its own
    figure, axes = new_figure(mosaic, TOP + height, height_ratios=[TOP, height])
    p_values = {"query": query["p_value"].dropna(), "calibration": of_others(cells)}
    p_values = {use: values.to_numpy() for use, values in p_values.items() if len(values)}
    tables = {"c": cells[["cell_id", "use", "library_size", "score"]]}
    if "query" in p_values:
        tables["a"] = _draw_histogram(axes["histogram"], p_values)
        tables["b"] = _draw_quantiles(axes["quantiles"], p_values, summary.get("smallest_p"))
        axes["histogram"].set_ylabel(f"Share of {observations} (%)")
        for letter, name in zip("de", of, strict=False):
            tables[letter] = by[name]
            _draw_shares(axes[name], by[name], name, observations)
    else:
        for name in ("histogram", "quantiles", *of):
            say(axes[name], f"no query {observations}")
    _draw_depth(axes["depth"], cells, summary)
    one = observations.removesuffix("s")
    axes["depth"].set_xlabel(f"Library size (counts per {one})")
    letter_panels(axes[name] for name in ("histogram", "quantiles", "depth", *of))
    table = panels_table({letter: tables[letter] for letter in sorted(tables)})
    return figure, table, _describe(cells, p_values, by, summary, observations)


def with_donors(cells: pd.DataFrame, obs: pd.DataFrame) -> pd.DataFrame:
    """``cells`` with the column donor of ``obs``, "" where none is known."""
    donor = obs.set_index("cell_id")["donor"] if "donor" in obs else pd.Series(dtype=object)
    donor = donor.astype(object).reindex(cells["cell_id"]).fillna("").astype(str)
    return cells.assign(donor=donor.to_numpy(), sample=cells["sample"].astype(str))


if __name__ == "__main__":
    with job(snakemake) as log:
        cells = pd.read_parquet(snakemake.input.cells)
        cells = with_donors(cells, read_obs(snakemake.input.counts, ["donor"]))
        summary = read_json(snakemake.input.summary)
        save_figure(*draw(cells, summary, snakemake.params.observations), snakemake.output)
        log.info("%d cells", len(cells))
