"""What a nat of latent information buys: the curve of rate and distortion over a grid of betas."""

import numpy as np
import pandas as pd

from job import job, read_json, write_json, write_tsv


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


def curve(summaries: list[dict], chosen: float) -> pd.DataFrame:
    """One row a beta: rate and distortion of held-out cells in nats, and what they make of it."""
    table = pd.DataFrame(
        [
            {
                "beta": summary["beta"],
                "rate": summary["rate"],
                "distortion": summary["distortion"],
                "elbo": summary["elbo"],
                "elbo_se": summary["elbo_se"],
                "active_units": summary["active_units"],
                "mutual_information": summary["mutual_information"],
            }
            for summary in summaries
        ]
    ).sort_values("beta", ignore_index=True)
    rate, distortion = table["rate"].to_numpy(), table["distortion"].to_numpy()
    return table.assign(
        on_envelope=lower_envelope(rate, distortion), chosen=table["beta"] == chosen
    )


def curve_warnings(table: pd.DataFrame) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    best = table.loc[table["elbo"].idxmax()]
    chosen = table[table["chosen"]].iloc[0]
    if best["elbo"] - chosen["elbo"] > 2 * chosen["elbo_se"]:
        return [
            f"beta = {best['beta']:g} has a held-out ELBO {best['elbo'] - chosen['elbo']:.2g} nats "
            f"a cell above that of the chosen {chosen['beta']:g}; consider train.beta: "
            f"{best['beta']:g}."
        ]
    return []


if __name__ == "__main__":
    with job(snakemake) as log:
        summaries = [read_json(path) for path in snakemake.input.summaries]
        table = curve(summaries, snakemake.params.beta)
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
