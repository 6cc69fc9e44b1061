"""What a nat of latent information buys: the curve of rate and distortion over a grid of betas."""

import numpy as np
import pandas as pd

from job import job, read_json, write_json, write_tsv

ERRORS = 2.0  # standard errors of the paired difference that another beta must gain


def lower_envelope(rate: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """Which points (points,) bool span the lower convex envelope of distortion over rate.

    From the least rate to the least distortion: what no mixture of two other models beats. A model
    above it was trained worse than its neighbours. Source: Alemi et al. 2018, arXiv:1711.00464.
    """
    order = np.lexsort((distortion, rate))
    hull: list[int] = []
    for i in order:
        if hull and distortion[i] >= distortion[hull[-1]]:
            continue  # more rate and no less distortion
        while len(hull) > 1 and not _bends_up(rate, distortion, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    on = np.zeros(len(rate), dtype=bool)
    on[hull] = True
    return on


def _bends_up(x: np.ndarray, y: np.ndarray, a: int, b: int, c: int) -> bool:
    """Whether b lies below the line from a to c."""
    return (y[b] - y[a]) * (x[c] - x[a]) < (y[c] - y[a]) * (x[b] - x[a])


def curve(summaries: list[dict], cells: list[pd.DataFrame], chosen: float) -> pd.DataFrame:
    """One row a beta: rate and distortion of held-out cells in nats, and what they make of it.

    ``cells``: reconstruction and kl of each validation cell, the same cells for every beta. What a
    beta gains in ELBO over the chosen one is a mean of differences cell by cell, whose error is far
    smaller than that of the ELBO itself, as a hard cell is hard for all.
    """
    elbo = [table["reconstruction"] - table["kl"] for table in cells]
    base = elbo[[summary["beta"] for summary in summaries].index(chosen)]
    rows = []
    for summary, values in zip(summaries, elbo, strict=True):
        gain = values - base
        rows.append(
            {
                "beta": summary["beta"],
                "rate": summary["rate"],
                "distortion": summary["distortion"],
                "elbo": summary["elbo"],
                "gain": float(gain.mean()),
                "gain_se": float(gain.std(ddof=1) / np.sqrt(len(gain))),
                "active_units": summary["active_units"],
                "mutual_information": summary["mutual_information"],
            }
        )
    table = pd.DataFrame(rows).sort_values("beta", ignore_index=True)
    rate, distortion = table["rate"].to_numpy(), table["distortion"].to_numpy()
    return table.assign(
        on_envelope=lower_envelope(rate, distortion), chosen=table["beta"] == chosen
    )


def curve_warnings(table: pd.DataFrame) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    best, chosen = table.loc[table["gain"].idxmax()], table[table["chosen"]].iloc[0]
    if best["gain"] <= ERRORS * best["gain_se"]:
        return []
    return [
        f"beta = {best['beta']:g} has a held-out ELBO {best['gain']:.2g} ± {best['gain_se']:.1g} "
        f"nats a cell above that of the chosen {chosen['beta']:g}; consider train.beta: "
        f"{best['beta']:g}."
    ]


if __name__ == "__main__":
    with job(snakemake) as log:
        summaries = [read_json(path) for path in snakemake.input.summaries]
        cells = [pd.read_parquet(path) for path in snakemake.input.validations]
        table = curve(summaries, cells, snakemake.params.beta)
        write_tsv(table, snakemake.output.curve)
        write_json(
            {
                "betas": table["beta"].tolist(),
                "chosen": snakemake.params.beta,
                "n_validation": summaries[0]["n_validation"],
                "warnings": curve_warnings(table),
            },
            snakemake.output.summary,
        )
        log.info("trace_rate_distortion: %d betas", len(table))
