"""Score the query cells against the reference, calibrate, and name the genes of each hit."""

from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.stats import binom, false_discovery_control, spearmanr

from job import InputError, job, write_json, write_parquet, write_tsv
from latent_place import mixture_surprise, neighbour_distance
from model_inputs import device_or_error, read_library_size
from omics_vae import anomaly
from omics_vae.data import CountData
from omics_vae.inference import dispersion, elbo_parts, expected_counts
from omics_vae.model import VAE, load_model

# Channel: its kind, and what it looks at. Channels of a kind are averaged before the combination:
# alike as they are, each would otherwise have a vote of its own.
CHANNELS = {
    "program": ("residuals", "mean -log p of the most surprising genes"),
    "single_gene": ("residuals", "-log p of the most surprising gene"),
    "profile": ("residuals", "negative binomial deviance over all genes of the model"),
    "shared_program": ("shared", "residuals along the programs that held-out cells share"),
    "latent_density": ("place", "-log density of the latent position in the reference"),
    "latent_distance": ("place", "distance to the nearest reference cells in latent space"),
    "unseen_genes": ("unseen", "counts in genes that the reference hardly shows"),
}
DEPTH_FIFTHS = 5
NOMINAL = 0.05
SPEARMAN_BAND = 0.1
GENE_COLUMNS = [
    "cell_id",
    "gene",
    "observed",
    "expected",
    "log2_fold_change",
    "p_value",
    "q_value",
    "direction",
    "null",
]


class Cells:
    """Counts, depth, split and latent position of all cells, in the order of counts.h5ad."""

    def __init__(self, counts: str, library_size: str, latent: str, genes: list[str]):
        adata = ad.read_h5ad(counts)
        self.obs = adata.obs
        self.size = read_library_size(library_size, adata.obs_names)["library_size"].to_numpy()
        table = pd.read_parquet(latent)
        means = [name for name in table.columns if name.startswith("mean_")]
        self.latent = table[means].to_numpy(np.float64)
        self.counts = sp.csr_matrix(adata.X)
        self.genes = adata.var_names
        self.in_model = adata.var_names.get_indexer(genes)
        if (self.in_model < 0).any() or not np.array_equal(table["cell_id"], adata.obs_names):
            raise InputError(
                f"{latent}: model, latent and counts are not of one run; delete the folders train, "
                "prune and embed and run the same command"
            )
        self.split = adata.obs["split"].astype(str).to_numpy()

    def of(self, *splits: str) -> np.ndarray:
        """Positions of the cells of some splits."""
        return np.flatnonzero(np.isin(self.split, splits))

    def model_data(self, cells: np.ndarray) -> CountData:
        """Counts of some cells in the model's genes."""
        return CountData(self.counts[cells][:, self.in_model], np.log(self.size[cells]))


def observed_and_expected(
    model: VAE, cells: Cells, scored: np.ndarray, data: CountData, device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of counts and their decoded means (cells, genes) of the ``scored`` cells."""
    for chunk, mu in expected_counts(model, cells.latent[scored], data.log_offset, device):
        yield data.counts[chunk].toarray().astype(np.float64), mu


def raw_channels(
    model: VAE, cells: Cells, scored: np.ndarray, settings: dict, seed: int, device
) -> dict[str, np.ndarray]:
    """Every channel of the ``scored`` cells, before the standardisation by depth."""
    data, theta = cells.model_data(scored), dispersion(model)
    parts: dict[str, list] = {}
    moment, total = np.zeros((len(theta), len(theta))), np.zeros(len(theta))
    for x, mu in observed_and_expected(model, cells, scored, data, device):
        found = anomaly.residual_channels(x, mu, theta, settings["program_genes"])
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
        residuals = anomaly.pearson_residuals(x, mu, theta)
        moment += residuals.T @ residuals
        total += residuals.sum(0)
    axes = anomaly.shared_axes(len(scored), moment, total)
    # Decoded a second time: keeping the residuals of all cells would cost cells x genes of memory.
    along = [
        anomaly.pearson_residuals(x, mu, theta) @ axes
        for x, mu in observed_and_expected(model, cells, scored, data, device)
    ]
    channels = {name: np.concatenate(values) for name, values in parts.items()}
    normal = cells.split[scored] != "query"
    channels["shared_program"] = anomaly.shared_program_channel(np.concatenate(along), normal)
    train, validation = cells.latent[cells.of("train")], cells.latent[cells.of("validation")]
    place = cells.latent[scored]
    channels["latent_density"] = mixture_surprise(train, validation, place, seed)
    channels["latent_distance"] = neighbour_distance(train, place)
    seen = cells.of("train", "validation")
    unseen = anomaly.unseen_genes_channel(
        cells.counts[scored],
        cells.size[scored],
        anomaly.pooled_rates(cells.counts[seen], cells.size[seen]),
        float(np.median(cells.size[seen])),
    )
    return channels if unseen is None else channels | {"unseen_genes": unseen}


def standardise(
    channels: dict[str, np.ndarray], log_depth: np.ndarray, normal: np.ndarray
) -> dict[str, np.ndarray]:
    """Each channel in SDs above what held-out normal cells of the same depth show."""
    result = {}
    for name, score in channels.items():
        standard = anomaly.DepthStandard.fit(score[normal], log_depth[normal])
        result[name] = standard.apply(score, log_depth)
    return result


def gene_hits(model: VAE, cells: Cells, flagged: np.ndarray, alpha: float, device) -> pd.DataFrame:
    """Genes of each flagged cell that its expectation does not explain (BY within the cell).

    Genes of the model are held against the decoded mean; all others against the reference's pooled
    rate at the cell's depth, with theta = 1, which is generous.
    """
    data, theta = cells.model_data(flagged), np.full(len(cells.genes), anomaly.POOLED_THETA)
    theta[cells.in_model] = dispersion(model)
    seen = cells.of("train", "validation")
    rates = anomaly.pooled_rates(cells.counts[seen], cells.size[seen])
    null = np.full(len(cells.genes), "pooled", dtype=object)
    null[cells.in_model] = "model"
    tables = [pd.DataFrame(columns=GENE_COLUMNS)]
    for chunk, mu in expected_counts(model, cells.latent[flagged], data.log_offset, device):
        rows = flagged[chunk]
        expected = cells.size[rows][:, None] * rates
        expected[:, cells.in_model] = mu
        observed = cells.counts[rows].toarray().astype(np.float64)
        p = np.exp(-anomaly.nb_surprise(observed, expected, theta))
        q = np.stack([false_discovery_control(row, method="by") for row in p])
        i, g = np.nonzero(q <= alpha)
        ratio = (observed[i, g] + 0.5) / (expected[i, g] + 0.5)
        tables.append(
            pd.DataFrame(
                {
                    "cell_id": cells.obs.index.to_numpy()[rows[i]],
                    "gene": cells.genes.to_numpy()[g],
                    "observed": observed[i, g].astype(np.int64),
                    "expected": expected[i, g],
                    "log2_fold_change": np.log2(ratio),
                    "p_value": p[i, g],
                    "q_value": q[i, g],
                    "direction": np.where(observed[i, g] > expected[i, g], "up", "down"),
                    "null": null[g],
                }
            )
        )
    hits = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    return hits.sort_values(["cell_id", "p_value", "gene"], ignore_index=True)


def false_positives_by_depth(p: np.ndarray, depth: np.ndarray) -> list[float]:
    """Share of normal cells with p <= 0.05 in each fifth of the depth, shallow to deep."""
    fifths = np.array_split(np.argsort(depth, kind="stable"), DEPTH_FIFTHS)
    return [float((p[cells] <= NOMINAL).mean()) for cells in fifths]


def channel_table(
    standardised: dict, verdict: anomaly.Verdict, query: np.ndarray, flagged: np.ndarray, depth
) -> pd.DataFrame:
    """One row a channel: what it is, how free of depth, in how many flagged cells it leads."""
    p = np.stack(list(verdict.p_channel.values()))
    leads = np.asarray(list(verdict.p_channel))[np.argmin(p, axis=0)][flagged]
    rows = []
    for name, score in standardised.items():
        rates = false_positives_by_depth(verdict.p_channel[name][~query], depth[~query])
        rows.append(
            {
                "channel": name,
                "kind": CHANNELS[name][0],
                "what": CHANNELS[name][1],
                "spearman_depth": spearman(score[~query], depth[~query]),
                "spearman_depth_query": spearman(score[query], depth[query]),
                "fpr_low_depth": rates[0],
                "fpr_high_depth": rates[-1],
                "n_leading": int((leads == name).sum()),
            }
        )
    return pd.DataFrame(rows)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; 0 where one of the two does not vary."""
    value = spearmanr(x, y).statistic if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0
    return float(value)


def calibration_warnings(summary: dict) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    found, alpha = [], summary["alpha"]
    n, m = summary["n_calibration"], summary["n_query"]
    together = int(np.ceil(m / (alpha * (n + 1))))
    if together > max(5, 0.05 * m):
        found.append(
            f"{n} calibration cells give no p-value below {1 / (n + 1):.3g}: at FDR {alpha:g} "
            f"fewer than {together} of {m} query cells can never be flagged; bring more reference "
            "cells or raise preprocess.split.calibration."
        )
    rho = summary["spearman_depth"]
    if abs(rho) > max(SPEARMAN_BAND, 2.6 / np.sqrt(n)):
        found.append(
            f"The score of normal cells follows sequencing depth (Spearman {rho:.2f}); compare "
            "only cells of similar depth, or filter shallow cells (preprocess.filter_cells)."
        )
    size = n // DEPTH_FIFTHS
    low, high = binom.ppf([0.001, 0.999], size, NOMINAL) / size
    for fifth, rate in enumerate(summary["fpr_by_depth_fifth"], start=1):
        if not low <= rate <= high:
            found.append(
                f"In depth fifth {fifth} of {DEPTH_FIFTHS} {100 * rate:.0f} % of normal cells have "
                f"p <= {NOMINAL:g} where 5 % are expected; read hits of that depth with care."
            )
    return found


if __name__ == "__main__":
    with job(snakemake) as log:
        settings, output = snakemake.params.settings, snakemake.output
        torch.set_num_threads(snakemake.threads)
        device = device_or_error(snakemake.params.device)
        model, genes = load_model(snakemake.input.weights, snakemake.input.description)
        cells = Cells(
            snakemake.input.counts, snakemake.input.library_size, snakemake.input.latent, genes
        )
        held_out = cells.of("validation", "calibration", "query")
        log_depth, split = np.log(cells.size[held_out]), cells.split[held_out]
        raw = raw_channels(model, cells, held_out, settings, snakemake.params.seed, device)
        standardised = standardise(raw, log_depth, split != "query")
        # Validation cells chose the stopping point, so they help to set the scale but not to rank.
        ranked = split != "validation"
        scored, depth, query = held_out[ranked], log_depth[ranked], split[ranked] == "query"
        standardised = {name: score[ranked] for name, score in standardised.items()}
        kinds = {name: CHANNELS[name][0] for name in standardised}
        verdict = anomaly.combine_channels(standardised, kinds, ~query)
        q_value = np.full(len(scored), np.nan)
        q_value[query] = false_discovery_control(verdict.p_value[query], method="bh")
        flagged = np.nan_to_num(q_value, nan=1.0) <= settings["alpha"]
        reconstruction, kl = elbo_parts(model, cells.model_data(scored), device)
        table = pd.DataFrame(
            {
                "cell_id": cells.obs.index.to_numpy()[scored],
                "sample": cells.obs["sample"].astype(str).to_numpy()[scored],
                "role": cells.obs["role"].astype(str).to_numpy()[scored],
                "split": cells.split[scored],
                "library_size": cells.size[scored],
                "score": verdict.score,
                "p_value": verdict.p_value,
                "q_value": q_value,
                "is_anomaly": flagged,
                **{f"z_{name}": score for name, score in standardised.items()},
                **{f"p_{name}": p for name, p in verdict.p_channel.items()},
                "elbo": reconstruction - kl.sum(1),
            }
        )
        hits = gene_hits(model, cells, scored[flagged], settings["gene_alpha"], device)
        p_normal = verdict.p_value[~query]
        summary = {
            "alpha": settings["alpha"],
            "gene_alpha": settings["gene_alpha"],
            "n_calibration": int((~query).sum()),
            "n_query": int(query.sum()),
            "n_anomalies": int(flagged.sum()),
            "smallest_p": float(verdict.p_value[query].min()),
            "channels": list(standardised),
            "spearman_depth": spearman(verdict.score[~query], depth[~query]),
            "spearman_depth_query": spearman(verdict.score[query], depth[query]),
            "fpr_by_depth_fifth": false_positives_by_depth(p_normal, depth[~query]),
        }
        summary["warnings"] = calibration_warnings(summary)
        write_parquet(table, output.cells)
        columns = ["cell_id", "sample", "score", "p_value", "q_value", "is_anomaly"]
        write_tsv(table.loc[query, columns], output.cells_tsv)
        write_parquet(hits, output.genes)
        write_tsv(hits, output.genes_tsv)
        write_tsv(channel_table(standardised, verdict, query, flagged, depth), output.channels)
        write_json(summary, output.summary)
        log.info(
            "detect_anomalies: %d of %d query cells at FDR %g",
            summary["n_anomalies"],
            summary["n_query"],
            settings["alpha"],
        )
