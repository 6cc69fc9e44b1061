"""Invented tables of the stages that judge and explain cells: anomaly, doublets, patterns, check.

    write_reasons(run, cells, rng)     # cells: as fake_run.make_cells has them

Three quarters of the flagged cells are of pattern P1, the rest but the last of P2; the last flagged
cell is alone and has no gene. Nothing here is a result.
"""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

CHANNELS = {"program": "residuals", "latent_density": "place", "unseen_genes": "unseen"}
KINDS = {
    "single gene": ("z = 2", "z = 6"),
    "doublet": ("matched depth",),
    "group": ("held out of the training",),
}
METHODS = ("anomics", "total count", "PCA error")
CAUSES = ["none found", "doublet of B cell and T cell; mitochondrial"]


def save(table: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tsv":
        table.to_csv(path, sep="\t", index=False, na_rep="NA")
    else:
        table.to_parquet(path, index=False)


def summary(path: Path, warnings: list[str] | None = None, /, **content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "warnings": warnings or []}), encoding="utf-8")


def _write_anomalies(run: Path, scored: pd.DataFrame, warnings: list[str]) -> None:
    is_query = scored["split"] == "query"
    n_query, n_calibration = int(is_query.sum()), int((~is_query).sum())
    is_ranking = not (scored["role"] == "query").any()
    table = scored.drop(columns=["cell", "cell_type"])
    table["trimmed"], table["calibrated_by"] = False, "cross-fitting" if is_ranking else ""
    table["leading_channel"] = np.where(table["is_anomaly"], "latent_density", "")
    for name in CHANNELS:
        table[f"z_{name}"], table[f"p_{name}"] = table["score"], table["p_value"]
    table["elbo"] = -600.0
    save(table, run / "anomaly/cells.parquet")
    channels = pd.DataFrame({"channel": CHANNELS.keys(), "kind": CHANNELS.values()})
    channels["what"] = "what this score looks at"
    channels["spearman_depth"] = [0.02, -0.04, 0.03]
    channels["spearman_depth_query"] = [0.01, -0.0789, 0.02]
    channels["fpr_low_depth"], channels["fpr_high_depth"] = 0.05, 0.04
    channels["n_leading"] = [0, int(table["is_anomaly"].sum()), 0]
    save(channels, run / "anomaly/channels.tsv")
    summary(
        run / "anomaly/summary.json",
        warnings,
        **{"is_ranking": is_ranking, "alpha": 0.1, "guarantee": "marginal"},
        **{"n_calibration": n_calibration, "n_query": n_query, "n_trimmed": 0},
        **{"n_anomalies": int(table["is_anomaly"].sum()), "calibrated_by_batch": []},
        **{"channels": list(CHANNELS), "spearman_depth": 0.013, "spearman_depth_query": -0.024},
        smallest_p=None if is_ranking else 1 / (n_calibration + 1),
        needed_together=0 if is_ranking else math.ceil(n_query / (0.1 * (n_calibration + 1))),
        fpr_by_depth_fifth=[0.05, 0.06, 0.04, 0.05, 0.05],
        bands={"spearman_depth": 0.1, "fpr": [0.02, 0.09], "needed_together": 5},
    )


def _write_doublets(run: Path, scored: pd.DataFrame) -> pd.Series:
    """The probability of each scored cell, by cell_id."""
    table = scored[["cell_id", "sample", "split"]].copy()
    table["doublet_score"] = np.linspace(-9, 2, len(table))
    table["doublet_probability"] = 1 / (1 + np.exp(-table["doublet_score"]))
    table["doublet_fit_p"] = 0.5
    table["parent_1"], table["parent_2"] = "B cell", "T cell"
    save(table, run / "doublets/cells.parquet")
    bins = [(0.0, 0.02), (0.02, 0.5), (0.5, 1.0)]
    of_query = table.loc[table["split"] == "query", "doublet_probability"]
    summary(
        run / "doublets/summary.json",
        **{"rate": 0.07, "n_reference": 278, "n_simulated": 556, "n_unseen": 41},
        **{"n_query": len(of_query), "n_likely": int((of_query > 0.5).sum())},
        **{"expected_share": 0.0327, "homotypic_share": 0.243},
        **{"auroc_matched": 0.882, "auroc_full": 0.913},
        reliability=[
            {"from": low, "to": high, "n": 11, "predicted": (low + high) / 2, "realised": 0.123}
            for low, high in bins
        ],
    )
    return table.set_index("cell_id")["doublet_probability"]


def _explain(flagged: pd.DataFrame, probability: pd.Series, gene: str, group: str) -> pd.DataFrame:
    """As patterns/cells.parquet; ``gene`` is in every list of genes, ``group`` nearest to all."""
    cells = flagged[["cell_id", "sample"]].reset_index(drop=True)
    n = len(cells)
    of = ["P1"] * math.ceil(0.75 * max(n - 1, 0))
    cells["donor"] = cells["sample"]
    cells["pattern"] = (of + ["P2"] * (n - 1 - len(of)) + [""])[:n]
    cells["nearest_reference"], cells["distance"] = group, 3.5
    cells["technical_cause"] = np.resize(CAUSES, n) if n else pd.Series(dtype=object)
    cells["basis"] = "counts"
    names = [gene, *(f"GENE{i}" for i in range(1, 9))]
    cells["genes"] = ", ".join(f"{name}+" for name in names)
    cells.loc[cells.index[-1:], "genes"] = ""
    cells["doublet_probability"] = probability.reindex(cells["cell_id"]).to_numpy()
    cells["parent_1"], cells["parent_2"] = "B cell", "T cell"
    evidence = ("depth_z", "pct_mito", "pct_mito_reference", "mito_z", "stress_z")
    for name in (*evidence, "ambient_share", "ambient_gain", "ambient_rest"):
        cells[name] = 0.25
    return cells


def _write_genes(run: Path, query: pd.DataFrame, reasons: pd.DataFrame, is_bulk: bool) -> None:
    """Hits of flagged cells as in their lists of genes, and how many each query cell has."""
    hits = reasons[["cell_id", "genes"]].assign(gene=reasons["genes"].str.split(", "))
    hits = hits[hits["genes"] != ""].explode("gene").drop(columns="genes")
    hits["gene"] = hits["gene"].str.removesuffix("+")
    hits["observed"], hits["expected"], hits["log2_fold_change"] = 12, 1.5, 3.0
    hits["log10_p"] = -17.0 + hits.groupby("cell_id").cumcount()
    hits["z_score"], hits["p_value"], hits["q_value"] = 6.1, 10.0 ** hits["log10_p"], 1e-6
    hits["direction"], hits["null"] = "up", "model"
    save(hits, run / "genes/genes.tsv")
    save(hits, run / "genes/genes.parquet")
    cells = query[["cell_id", "sample", "is_anomaly"]].reset_index(drop=True)
    found = hits.groupby("cell_id")["gene"].agg(["size", "first"]).reindex(cells["cell_id"])
    cells["n_outlier_genes"] = found["size"].fillna(0).astype(int).to_numpy()
    cells["n_up"], cells["n_down"] = cells["n_outlier_genes"], 0
    cells["share"] = cells["n_outlier_genes"] / 6000
    cells["top_gene"] = found["first"].fillna("GENE5").to_numpy()
    cells["top_log10_p"] = np.where(cells["n_outlier_genes"] > 0, -17.0, -1.5)
    if is_bulk:
        cells["is_aberrant"] = np.arange(len(cells)) < 2
    save(cells, run / "genes/outliers.tsv")
    reported = cells if is_bulk else cells[cells["is_anomaly"]]
    _write_gene_panels(run, hits, cells, len(reported))
    summary(
        run / "genes/summary.json",
        **{"observations": "samples" if is_bulk else "cells", "alpha": 0.05, "n_query": len(cells)},
        **{"n_hits": len(hits), "n_with_outliers": int(hits["cell_id"].nunique())},
        **{"n_reported": len(reported), "aberrant_above": 10},
        n_aberrant=2 if is_bulk else None,
        median_theta_ratio=1.4 if is_bulk else None,
        null_ratio={"n_tests": 1000, "0.01": 1.01, "0.001": 1.43, "0.0001": 3.4},
    )


def _write_gene_panels(run: Path, hits: pd.DataFrame, cells: pd.DataFrame, n: int) -> None:
    """Where 40 tests of each of ``n`` cells lie, and the leading two genes in all cells."""
    places = [
        ("counts", 0.05, 0.0),
        ("counts", 0.3, 0.35),
        ("volcano", -0.3, 0.2),
        ("volcano", 1, 2),
    ]
    density = pd.DataFrame(places if n else [], columns=["plane", "x", "y"])
    save(density.assign(n_tests=20 * n), run / "genes/density.tsv")
    genes = hits["gene"].value_counts().index[:2] if len(hits) else []
    rows = [(gene, name, k % 5) for gene in genes for k, name in enumerate(cells["cell_id"])]
    top = pd.DataFrame(rows, columns=["gene", "cell_id", "observed"])
    top["expected"] = 0.5 + 0.3 * (np.arange(len(top)) % 7)
    top["low"], top["high"] = 0.0, np.ceil(2 * top["expected"] + 1)
    found = pd.MultiIndex.from_frame(hits[["gene", "cell_id"]])
    top["is_hit"] = pd.MultiIndex.from_frame(top[["gene", "cell_id"]]).isin(found)
    top["observed"] += 11 * top["is_hit"]
    save(top, run / "genes/top.parquet")


def write_correlation(run: Path, names: list[str]) -> None:
    """Two batches whose samples are alike before, and not after."""
    batch = np.array(["one", "two"])[np.arange(len(names)) % 2]
    samples = pd.DataFrame({"cell_id": names, "role": "query", "batch": batch})
    save(samples.sort_values("batch", kind="stable"), run / "correlation/samples.tsv")
    one, other = np.triu_indices(len(names), 1)
    pairs = pd.DataFrame({"sample_1": np.array(names)[one], "sample_2": np.array(names)[other]})
    pairs["before"] = np.where(batch[one] == batch[other], 0.6, -0.5)
    pairs["after"] = 0.01
    save(pairs, run / "correlation/pairs.parquet")
    summary(
        run / "correlation/summary.json",
        **{"n_samples": len(names), "n_genes": 2000, "median_before": 0.5, "median_after": 0.01},
    )


def _pattern_row(name: str, own: pd.DataFrame, n_flagged: int, gene: str, group: str) -> dict:
    return {
        **{"pattern": name, "label": f"{gene}+ GENE1+ GENE9-", "n_cells": len(own)},
        **{"share_of_flagged": len(own) / max(n_flagged, 1), "n_samples": own["sample"].nunique()},
        **{"n_donors": own["donor"].nunique(), "nearest_reference": group},
        **{"nearest_share": 0.75, "distance": 3.5, "technical_cause": CAUSES[0]},
        **{"cause_share": 0.0, "n_markers": 14, "up": f"{gene}, GENE1", "down": "GENE9"},
        **own.select_dtypes("number").drop(columns="distance").median(),
    }


def _write_patterns(run: Path, reasons: pd.DataFrame, gene: str, group: str) -> None:
    names = [name for name in ("P1", "P2") if (reasons["pattern"] == name).any()]
    rows = [
        _pattern_row(name, reasons[reasons["pattern"] == name], len(reasons), gene, group)
        for name in ["", *names]  # the first brings the columns where there is no pattern
    ]
    save(pd.DataFrame(rows).iloc[1:], run / "patterns/patterns.tsv")
    genes = [gene, *(f"GENE{i}" for i in range(1, 14))]
    markers = pd.DataFrame(
        [(name, g, "down" if i % 5 == 4 else "up") for name in names for i, g in enumerate(genes)],
        columns=["pattern", "gene", "direction"],
    )
    markers["mean_observed"], markers["mean_expected"] = 3.61, 0.194
    markers["mean_reference"], markers["log2_fold_change"] = 0.0126, 7.49
    markers["mean_residual"], markers["share"], markers["p_value"] = 7.44, 0.924, 1e-30
    markers["q_value"] = 1e-20 * 10.0 ** markers["gene"].map(genes.index)
    save(markers, run / "patterns/markers.tsv")
    inside = reasons.loc[reasons["pattern"] != "", ["pattern", "cell_id"]]
    residuals = inside.merge(
        markers[["gene", "mean_residual"]].drop_duplicates("gene"), how="cross"
    )
    residuals = residuals.rename(columns={"mean_residual": "residual"})
    save(residuals, run / "patterns/residuals.parquet")
    counted = reasons.assign(pattern=reasons["pattern"].replace("", "no pattern"))
    sizes = counted.groupby(["pattern", "sample", "donor"]).size().rename("n_cells").reset_index()
    save(sizes.assign(share_of_query=0.1), run / "patterns/sizes.tsv")
    groups = pd.DataFrame({"group": ["B cell", "T cell"], "n_cells": [51, 33]})
    groups["named_by"], groups["genes"] = "cell_type", ["MS4A1, CD79A", "CD3D, CD3E"]
    save(groups, run / "patterns/groups.tsv")
    save(reasons, run / "patterns/cells.parquet")
    summary(
        run / "patterns/summary.json",
        **{"n_flagged": len(reasons), "n_patterns": len(names), "n_decoded": 0},
        n_in_pattern=int((reasons["pattern"] != "").sum()),
        n_without_cause=int((reasons["technical_cause"] == CAUSES[0]).sum()),
        **{"causes": {}, "n_groups": 2, "groups_named_by": "cell_type"},
    )


def _write_verdict(run: Path, query: pd.DataFrame, reasons: pd.DataFrame, probability) -> None:
    """anomaly/cells.tsv, whose texts are empty for cells that were not flagged."""
    texts = ["pattern", "nearest_reference", "technical_cause", "genes"]
    verdict = ["cell_id", "sample", "score", "p_value", "q_value", "is_anomaly"]
    table = query[verdict].merge(reasons[["cell_id", *texts]], how="left", on="cell_id")
    table[texts] = table[texts].fillna("")
    table["doublet_probability"] = probability.reindex(table["cell_id"]).to_numpy()
    order = [*texts[:2], "doublet_probability", *texts[2:]]
    save(table[[*verdict, *order]], run / "anomaly/cells.tsv")


def write_check(run: Path, kinds: dict[str, tuple[str, ...]] = KINDS) -> Path:
    """What anomalies put into normal cells were found; ``kinds``: their strengths."""
    rows = [
        (kind, strength, method)
        for kind, strengths in kinds.items()
        for strength in strengths
        for method in METHODS
    ]
    table = pd.DataFrame(rows, columns=["kind", "strength", "method"])
    table["n_injected"], table["n_normal"] = 15, 54
    step = np.arange(len(table)) / max(len(table), 1)
    table["auroc"], table["auprc"] = 0.5 + 0.5 * step, step
    table["power"], table["fdp"], table["fpr"] = step, 0.08, 0.05
    table["spearman_depth"], table["auroc_sd"] = 0.04, 0.03
    save(table, run / "check/check.tsv")
    draws = pd.concat([table.drop(columns="auroc_sd").assign(repeat=k) for k in (1, 2, 3)])
    draws["auroc"] += 0.03 * (draws["repeat"] - 2)
    draws["value"] = draws["strength"].str.extract(r"z = (\d+)")[0].astype(float)
    save(draws, run / "check/check.parquet")
    group = {"group": "B cell", "source": "cell_type", "n_cells": 38, "n_reference": 415}
    summary(
        run / "check/summary.json",
        **{"alpha": 0.1, "repeats": 3, "injected_share": 0.1, "n_normal": 137},
        **{"mean_fdp": 0.08, "mean_power": 0.46, "mean_fpr": 0.05, "held_out_group": group},
        methods=dict.fromkeys(METHODS, "what it is"),
    )
    return run


def write_reasons(
    run: Path, cells: pd.DataFrame, warnings: list[str], gene: str, group: str, is_bulk: bool
) -> None:
    """The folders anomaly, genes, patterns and, unless ``is_bulk``, doublets.

    ``gene``: the first of every list of genes; ``group``: the reference group nearest to all.
    """
    scored = cells[cells["score"].notna()].copy()
    if (cells["role"] == "reference").all():
        scored["split"] = "query"
    query = scored[scored["split"] == "query"]
    flagged = query[query["is_anomaly"]]
    _write_anomalies(run, scored, warnings)
    probability = pd.Series(dtype=float) if is_bulk else _write_doublets(run, scored)
    reasons = _explain(flagged, probability, gene, group)
    _write_genes(run, query, reasons, is_bulk)
    if is_bulk:
        write_correlation(run, scored["cell_id"].tolist()[:60])
    _write_patterns(run, reasons, gene, group)
    _write_verdict(run, query, reasons, probability)
