"""Join the samples' counts on the genes they share."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from job import InputError
from omics_vae.counts import Counts
from stored_counts import CountFile

ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}(?:\.\d+)?$")
VERSION = re.compile(r"\.\d+$")
# Below this share of the smallest sample's genes the names do not match, or the samples are of
# different assays; between the two shares a warning.
MIN_SHARED, FEW_SHARED = 0.5, 0.8


@dataclass(frozen=True)
class JoinedCounts:
    """The counts of several samples, one after the other, in the same genes."""

    parts: list[Counts]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(len(part) for part in self.parts), self.parts[0].shape[1]

    def take(self, kept: np.ndarray) -> "JoinedCounts":
        """Cells of a boolean mask."""
        ends = np.cumsum([len(part) for part in self.parts])[:-1]
        masks = np.split(kept, ends)
        return JoinedCounts([p.take(mask) for p, mask in zip(self.parts, masks, strict=True)])

    def of_genes(self, genes: np.ndarray) -> "JoinedCounts":
        """Some genes: positions or a boolean mask."""
        return JoinedCounts([part.of_genes(genes) for part in self.parts])

    def blocks(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """All cells in their order, some at a time."""
        start = 0
        for part in self.parts:
            for rows, block in part.blocks():
                yield slice(start + rows.start, start + rows.stop), block
            start += len(part)


def join_samples(
    samples: list[CountFile],
) -> tuple[JoinedCounts, pd.DataFrame, pd.DataFrame, dict, list[str]]:
    """All cells of all samples over the genes shared by all of them.

    Parameters
    ----------
    samples: raw counts with obs.sample; unique cell names within a sample.

    Returns
    -------
    counts: rows in the order of the samples, genes in the order of the first.
    obs: index cell_id, ``cell`` the input's name. var: gene_id where a sample has ids.
    lost: for each sample its genes that another sample lacks (their number).
    warnings: one line each.

    Raises
    ------
    InputError: fewer than half of the smallest sample's genes are shared; an ambiguous cell id.
    """
    names = [str(sample.obs["sample"].iloc[0]) for sample in samples]
    genes = shared_genes(names, [sample.var.index for sample in samples])
    counts = JoinedCounts(
        [
            sample.counts
            if sample.var.index.equals(genes)
            else sample.counts.of_genes(sample.var.index.get_indexer(genes))
            for sample in samples
        ]
    )
    obs = pd.concat([sample.obs.rename_axis("cell").reset_index() for sample in samples])
    obs.index = cell_ids(obs["cell"].to_numpy(dtype=str), obs["sample"].to_numpy(dtype=str))
    obs = obs.apply(_one_type)

    var = ids_of_genes(genes, [sample.var for sample in samples])

    n_genes = [len(sample.var) for sample in samples]
    lost = {name: n - len(genes) for name, n in zip(names, n_genes, strict=True)}
    warnings = []
    if len(genes) < FEW_SHARED * min(n_genes):
        warnings.append(
            f"only {len(genes)} genes are shared by all samples (the smallest has "
            f"{min(n_genes)}); check that all were counted with the same annotation"
        )
    return counts, obs, var, lost, warnings


def cell_ids(cells: np.ndarray, samples: np.ndarray) -> pd.Index:
    """The cell's name, or ``<sample>:<name>`` for each cell whose name is in several samples.

    Raises
    ------
    InputError: an id made so is the name of yet another cell.
    """
    clashing = pd.Series(cells).duplicated(keep=False).to_numpy()
    ids = pd.Index(np.where(clashing, samples.astype(object) + ":" + cells.astype(object), cells))
    if not ids.is_unique:
        twice = ids[ids.duplicated()][0]
        raise InputError(
            f"cell {twice}: two cells would have this id, which is <sample>:<name> where a name "
            "is in several samples; rename the cell or the sample"
        )
    return ids.rename("cell_id")


def _one_type(column: pd.Series) -> pd.Series:
    """Samples may disagree on a column's type: numbers stay numbers, the rest becomes strings."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    return column.astype(object).where(column.isna(), column.astype(str))


def ids_of_genes(genes: pd.Index, of_samples: list[pd.DataFrame]) -> pd.DataFrame:
    """var of the shared genes: gene_id as the first sample has it that has ids."""
    var = pd.DataFrame(index=genes)
    with_ids = [of_sample for of_sample in of_samples if "gene_id" in of_sample]
    if with_ids:
        var["gene_id"] = with_ids[0].loc[genes, "gene_id"].astype(str).to_numpy()
    return var


def shared_genes(names: list[str], genes: list[pd.Index]) -> pd.Index:
    """Genes of the first sample that are in all others too, in its order.

    Raises InputError where these are fewer than half of those of the smallest sample.
    """
    shared = set(genes[0]).intersection(*genes[1:])
    smallest = min(range(len(genes)), key=lambda i: len(genes[i]))
    if len(shared) < MIN_SHARED * len(genes[smallest]):
        first, second = _worst_pair(genes)
        raise InputError(
            f"the samples share only {len(shared)} genes, fewer than half of the "
            f"{len(genes[smallest])} of sample {names[smallest]}: {names[first]} has "
            f"{_examples(genes[first], genes[second])}, {names[second]} has "
            f"{_examples(genes[second], genes[first])}; {_guess(genes[first], genes[second])}"
        )
    return genes[0][[gene in shared for gene in genes[0]]]


def _worst_pair(genes: list[pd.Index]) -> tuple[int, int]:
    """The sample least like the first, and the one least like that."""
    one = _least_like(genes, 0)
    return tuple(sorted((one, _least_like(genes, one))))


def _least_like(genes: list[pd.Index], one: int) -> int:
    own = set(genes[one])
    others = [i for i in range(len(genes)) if i != one]
    return min(others, key=lambda i: len(own.intersection(genes[i])) / min(len(own), len(genes[i])))


def _examples(genes: pd.Index, other: pd.Index) -> str:
    """Up to three names that the other sample lacks."""
    lacking = set(other)
    return " ".join([gene for gene in genes if gene not in lacking][:3])


def _guess(first: pd.Index, second: pd.Index) -> str:
    """What is most likely wrong with the names, and the mend."""
    ensembl = [np.mean([bool(ENSEMBL.match(gene)) for gene in side]) for side in (first, second)]
    if max(ensembl) > 0.5 > min(ensembl):
        return "one sample has Ensembl ids and the other symbols; name the genes alike in both"
    half = MIN_SHARED * min(len(first), len(second))
    for change, guess in (
        (
            lambda gene: VERSION.sub("", gene),
            "the names differ in version suffixes (.1)",
        ),
        (str.casefold, "the names differ in upper and lower case (another species?)"),
    ):
        if len({change(gene) for gene in first} & {change(gene) for gene in second}) >= half:
            return guess + "; name the genes alike in both"
    return "they seem to be of different species, annotations or assays; analyse them apart"
