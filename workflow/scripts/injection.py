"""Anomalies of known kind and strength, put into normal cells that the model has not seen."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from doublets import partners, thin, total
from held_cells import Cells
from omics_vae.inference import decoded
from omics_vae.model import VAE

# Of a gene that the cell is not expected to show, nothing can be said to be missing or too much.
LEAST_EXPECTED = 0.1
OF_CELLS = ("doublet", "ambient")  # kinds that no bulk sample can be
PROGRAM_FOLD = 4.0  # how many times as much of each gene of a program: log2 fold change 2


@dataclass(frozen=True)
class Kind:
    """A kind of anomaly: its name and its strength, as they stand in the tables."""

    kind: str
    strength: str
    make: Callable[..., sp.csr_matrix] | None  # None: whole cells of a group that was held out
    value: float = np.nan  # the strength as a number, where the kind has a scale


def expected_counts(model: VAE, cells: Cells, device) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each count of the model's genes, each (cells, genes)."""
    parts = [
        (model.as_counts(e.mean, cells.size[at]), np.sqrt(e.variance.numpy()))
        for at, _, e in decoded(model, cells.data, cells.posterior, device)
    ]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def inject_gene(z: float) -> Callable:
    """One gene of each cell is set to its expectation plus ``z`` standard deviations, rounded up.

    Another gene in each cell, drawn among those with an expected count of at least 0.1.
    """

    def make(cells: Cells, model: VAE, device, rng: np.random.Generator) -> sp.csr_matrix:
        mean, sd = expected_counts(model, cells, device)
        counts = cells.counts[:].tolil()
        for cell in range(len(cells)):
            usual = np.flatnonzero(mean[cell] >= LEAST_EXPECTED)
            gene = int(rng.choice(usual)) if len(usual) else int(mean[cell].argmax())
            value = int(np.ceil(mean[cell, gene] + z * sd[cell, gene]))
            counts[cell, cells.in_model[gene]] = value
        return counts.tocsr()

    return make


def inject_program(n_genes: int) -> Callable:
    """``n_genes`` genes, the same in all cells, are expressed four times as much.

    Drawn among genes with an expected count of at least 0.1 in the mean of the cells.
    """

    def make(cells: Cells, model: VAE, device, rng: np.random.Generator) -> sp.csr_matrix:
        mean, _ = expected_counts(model, cells, device)
        usual = np.flatnonzero(mean.mean(0) >= LEAST_EXPECTED)
        if len(usual) < n_genes:
            usual = np.argsort(-mean.mean(0), kind="stable")[:n_genes]
        program = rng.choice(usual, min(n_genes, len(usual)), replace=False)
        more = rng.poisson((PROGRAM_FOLD - 1.0) * mean[:, program])
        counts = cells.counts[:].tolil()
        at = cells.in_model[program]
        counts[:, at] = counts[:, at].toarray() + more
        return counts.tocsr()

    return make


def inject_doublets(cells: Cells, model: VAE, device, rng: np.random.Generator) -> sp.csr_matrix:
    """Each cell together with another of them and of its sample, at the depth of the one."""
    sample = np.unique(cells.obs["sample"].astype(str), return_inverse=True)[1]
    first = np.arange(len(cells))
    both = (cells.counts[:] + cells.counts[partners(sample, first, rng)]).tocsr()
    return thin(both, total(cells.counts) / total(both), rng)


def inject_ambient(share: float) -> Callable:
    """A ``share`` of the counts of each cell is replaced by draws from the profile of these cells.

    So that cell by cell the total count stays.
    """

    def make(cells: Cells, model: VAE, device, rng: np.random.Generator) -> sp.csr_matrix:
        kept = thin(cells.counts[:], np.full(len(cells), 1.0 - share), rng)
        soup = cells.counts.sum(0)
        lost = (total(cells.counts) - total(kept)).astype(np.int64)
        drawn = rng.multinomial(lost, soup / soup.sum())
        return (kept + sp.csr_matrix(drawn.astype(kept.dtype))).tocsr()

    return make


# From what hardly any run finds to what most do, so that the power can be seen to rise.
KINDS = [
    *(Kind("single gene", f"z = {z}", inject_gene(z), z) for z in (3, 6, 12, 24)),
    *(Kind("program", f"{n} genes, 4-fold", inject_program(n), n) for n in (5, 20, 100, 300)),
    Kind("doublet", "matched depth", inject_doublets),
    *(
        Kind("ambient", f"{name} of the counts", inject_ambient(share), share)
        for name, share in (("a quarter", 0.25), ("half", 0.5), ("three quarters", 0.75))
    ),
]
GROUP = Kind("group", "held out of the training", None)


def possible_kinds(observations: str, n_genes: int) -> list[Kind]:
    """The kinds that cells, or bulk samples, with so many genes in the model can be.

    A program of most of the genes would be none: depth takes up what all genes have in common.
    """
    return [
        kind
        for kind in KINDS
        if (observations == "cells" or kind.kind not in OF_CELLS)
        and not (kind.kind == "program" and kind.value > n_genes / 2)
    ]


def injected(
    kind: Kind, cells: Cells, chosen: np.ndarray, model: VAE, device, rng: np.random.Generator
) -> Cells:
    """Those ``chosen`` (positions) among ``cells`` turned into anomalies of a kind."""
    some = cells.take(chosen)
    changed = kind.make(some, model, device, rng).astype(np.int32)
    return some.with_counts(changed, model, device)


def as_split(cells: Cells, name: str) -> Cells:
    """The same cells in the role of a split."""
    return replace(cells, obs=cells.obs.assign(split=name))
