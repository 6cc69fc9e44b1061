"""The sets of the benchmark: which cells are reference, which are query, which are hidden in it.

A set gives an AnnData with raw counts, ``obs["role"]`` for the pipeline and ``obs["truth"]`` (is a
hidden anomaly), which only judges. Of the normal cells half are reference, half query; hidden cells
join the query until they are the set's share of it. The split (a seed) draws both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

THINNED_TO = 1 / 3  # of a hidden cell's counts
THINNED_NAME = "_thinned"  # what the name of such a set ends in
FAILED_QC = "Unassigned"  # pbmc3k's 62 damaged cells


@dataclass(frozen=True)
class Case:
    """A public file and what is hidden in its query; or a simulation, which needs no file."""

    name: str
    group: str  # public, thinned, simulated or normal
    file: str = ""
    column: str = ""
    hidden: str | None = None  # the label that is hidden; None: nothing is
    left_out: str | None = None  # a label that is neither normal nor hidden
    share: float | None = 0.1  # of the query; None: all cells of the label
    thinned: bool = False
    simulate: Callable[[np.random.Generator], ad.AnnData] | None = None

    def cells(self, data: Path, split: int) -> ad.AnnData:
        """Reference and query cells, with obs["role"] and obs["truth"]."""
        rng = np.random.default_rng(split)
        if self.simulate is not None:
            adata = self.simulate(rng)
            hidden, normal = adata.obs["truth"].to_numpy(), ~adata.obs["truth"].to_numpy()
        else:
            adata = ad.read_h5ad(data / f"{self.file}.h5ad")
            labels = adata.obs[self.column].astype(object).to_numpy()
            hidden = labels == self.hidden
            normal = ~hidden & (labels != self.left_out)
        role, truth = assign_roles(normal, hidden, self.share, rng)
        adata.obs["role"], adata.obs["truth"] = role, truth
        adata = adata[role != ""].copy()
        if self.thinned:
            adata.X = thin(sp.csr_matrix(adata.X), adata.obs["truth"].to_numpy(), rng)
        return adata


def assign_roles(
    normal: np.ndarray, hidden: np.ndarray, share: float | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """reference, query or "" (left out), and which cells are hidden in the query; each (cells,)."""
    drawn = rng.permutation(np.flatnonzero(normal))
    half = len(drawn) // 2
    anomalies = rng.permutation(np.flatnonzero(hidden))
    if share is not None:
        anomalies = anomalies[: round((len(drawn) - half) * share / (1 - share))]
    role = np.full(len(normal), "", dtype=object)
    role[drawn[:half]] = "reference"
    role[drawn[half:]] = role[anomalies] = "query"
    truth = np.zeros(len(normal), dtype=bool)
    truth[anomalies] = True
    return role, truth


def thin(X: sp.csr_matrix, which: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Counts as if the cells of ``which`` had been sequenced to a third: binomial(x, 1/3)."""
    X = X.copy()
    theirs = which[np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))]
    X.data[theirs] = rng.binomial(X.data[theirs].astype(np.int64), THINNED_TO)
    X.eliminate_zeros()
    return X


# ---- simulated counts

NORMAL, ANOMALIES, GENES, GROUPS = 2400, 133, 1200, 8
DEPTH, DEPTH_SPREAD = 2000.0, 0.4  # median counts a cell, and the sd of their log
THETA = 5.0  # variance mu + mu^2 / theta
PROGRAM_GENES, PROGRAM_FOLD = 20, 3.0
GENE_FOLD = 12.0


def shares(rng: np.random.Generator, n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Composition of cells (cells, genes) and their groups (cells,).

    log share = a gene's level + what marks the group (a tenth of the genes) + 3 programs that vary
    in every group.
    """
    level = rng.normal(0, 1.5, GENES)
    marks = rng.normal(0, 1, (GROUPS, GENES)) * (rng.random((GROUPS, GENES)) < 0.1)
    programs = rng.normal(0, 0.15, (3, GENES))
    group = rng.integers(GROUPS, size=n_cells)
    rate = np.exp(level + marks[group] + rng.standard_normal((n_cells, 3)) @ programs)
    return rate / rate.sum(1, keepdims=True), group


def counts_of(share: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> ad.AnnData:
    """NB counts at log-normal depth, the same for normal and hidden cells."""
    depth = DEPTH * np.exp(rng.normal(0, DEPTH_SPREAD, len(share)))
    mu = depth[:, None] * share
    X = rng.poisson(rng.gamma(THETA, mu / THETA)).astype(np.int32)
    names = [f"cell{i}" for i in range(len(share))]
    genes = [f"G{g}" for g in range(share.shape[1])]
    obs, var = pd.DataFrame({"truth": truth}, index=names), pd.DataFrame(index=genes)
    return ad.AnnData(sp.csr_matrix(X), obs=obs, var=var)


def last(n: int) -> np.ndarray:
    """Which cells of a simulation are hidden: the last ``ANOMALIES`` of n (n,)."""
    return np.arange(n) >= n - ANOMALIES


def a_group(rng: np.random.Generator) -> ad.AnnData:
    """One of the eight groups, the others being normal."""
    share, group = shares(rng, NORMAL * GROUPS // (GROUPS - 1))
    return counts_of(share, group == 0, rng)


def a_program(rng: np.random.Generator) -> ad.AnnData:
    """Cells of any group in which 20 of the better expressed genes are three times up."""
    share, _ = shares(rng, NORMAL + ANOMALIES)
    well = np.argsort(share.mean(0))[GENES // 2 :]
    up = rng.choice(well, PROGRAM_GENES, replace=False)
    truth = last(len(share))
    share[np.ix_(truth, up)] *= PROGRAM_FOLD
    return counts_of(share / share.sum(1, keepdims=True), truth, rng)


def doublets(rng: np.random.Generator) -> ad.AnnData:
    """Two cells of different groups, half of each, at the depth of one."""
    share, group = shares(rng, NORMAL + ANOMALIES)
    truth = last(len(share))
    for cell in np.flatnonzero(truth):
        other = rng.choice(np.flatnonzero(~truth & (group != group[cell])))
        share[cell] = (share[cell] + share[other]) / 2
    return counts_of(share, truth, rng)


def a_gene(rng: np.random.Generator) -> ad.AnnData:
    """One gene twelve times up, the same in every hidden cell: the hundredth best expressed."""
    share, _ = shares(rng, NORMAL + ANOMALIES)
    truth = last(len(share))
    share[truth, np.argsort(share.mean(0))[-100]] *= GENE_FOLD
    return counts_of(share / share.sum(1, keepdims=True), truth, rng)


# ---- all sets

PBMC = Case("pbmc", "public", "pbmc3k", "cell_type", left_out=FAILED_QC)
KANG = Case("kang_DC", "public", "kang_ctrl_12k_1287genes", "cell_type", "Dendritic cells")
SORTED = Case("sorted_monocytes", "public", "pbmc_zheng_sorted_ref", "facs_label", "monocytes")
PBMC_TYPES = ["B", "NK", "CD14+ Mono", "FCGR3A+ Mono", "CD8 T", "DC", "Platelet"]
PUBLIC = [
    *(replace(PBMC, name=f"pbmc_{t.replace(' ', '_')}", hidden=t) for t in PBMC_TYPES),
    replace(PBMC, name="pbmc_damaged", hidden=FAILED_QC),
    Case("kang_stim", "public", "kang_ifnb_2000", "condition", "stim", share=0.15),
    KANG,
    Case("mix_A549", "public", "mix_cell_lines_5batches", "cell_line", "A549", share=None),
    SORTED,
    Case(
        "zeisel_endothelial",
        *("public", "zeisel_cortex_3types_1000genes", "cell_type", "endothelial-mural"),
    ),
]
THINNED = [replace(c, name=c.name + THINNED_NAME, group="thinned", thinned=True) for c in PUBLIC]
SIMULATED = [
    Case(f"simulated_{name}", "simulated", simulate=make)
    for name, make in (
        *(("group", a_group), ("program", a_program)),
        *(("doublets", doublets), ("gene", a_gene)),
    )
]
NOTHING_HIDDEN = [
    replace(PBMC, name="normal_pbmc", group="normal"),
    replace(KANG, name="normal_kang", group="normal", hidden=None, left_out="Dendritic cells"),
    replace(SORTED, name="normal_sorted", group="normal", hidden=None),
]
CASES = {c.name: c for c in (*PUBLIC, *THINNED, *SIMULATED, *NOTHING_HIDDEN)}
GROUPS_OF_SETS = ("public", "thinned", "simulated", "normal")


def chosen(names: list[str]) -> list[Case]:
    """The sets of these names; a group's name stands for all its sets."""
    return [c for c in CASES.values() if c.name in names or c.group in names]
