"""Join the samples' counts on the genes they share."""

import re
from itertools import combinations

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from job import InputError

ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}(?:\.\d+)?$")
VERSION = re.compile(r"\.\d+$")
# Below this share of the smallest sample's genes the names do not match, or the samples are of
# different assays; between the two shares a warning.
MIN_SHARED, FEW_SHARED = 0.5, 0.8


def join_samples(samples: list[anndata.AnnData]) -> tuple[anndata.AnnData, dict, list[str]]:
    """All cells of all samples over the genes shared by all of them.

    Parameters
    ----------
    samples: raw counts with obs.sample; unique cell names within a sample.

    Returns
    -------
    joined: X CSR int32; rows in the order of the samples, genes in the order of the first; obs
        index = cell_id, obs.cell the input's name.
    lost: for each sample its genes that another sample lacks (their number).
    warnings: one line each.

    Raises
    ------
    InputError: fewer than half of the smallest sample's genes are shared; an ambiguous cell id.
    """
    names = [str(sample.obs["sample"].iloc[0]) for sample in samples]
    genes = _shared_genes(names, [sample.var_names for sample in samples])
    X = sparse.vstack([sample[:, genes].X for sample in samples], format="csr", dtype=np.int32)
    obs = pd.concat([sample.obs.rename_axis("cell").reset_index() for sample in samples])
    obs.index = cell_ids(obs["cell"].to_numpy(dtype=str), obs["sample"].to_numpy(dtype=str))
    obs = obs.apply(_one_type)

    var = pd.DataFrame(index=genes)
    with_ids = [sample for sample in samples if "gene_id" in sample.var]
    if with_ids:
        var["gene_id"] = with_ids[0].var.loc[genes, "gene_id"].astype(str).to_numpy()

    lost = {name: s.n_vars - len(genes) for name, s in zip(names, samples, strict=True)}
    smallest = min(sample.n_vars for sample in samples)
    warnings = []
    if len(genes) < FEW_SHARED * smallest:
        warnings.append(
            f"only {len(genes)} genes are shared by all samples (the smallest has {smallest}); "
            "check that all were counted with the same annotation"
        )
    return anndata.AnnData(X, obs=obs, var=var), lost, warnings


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


def _shared_genes(names: list[str], genes: list[pd.Index]) -> pd.Index:
    """Genes of the first sample that are in all others too, in its order."""
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
    sets = [set(index) for index in genes]
    return min(
        combinations(range(len(sets)), 2),
        key=lambda pair: (
            len(sets[pair[0]] & sets[pair[1]]) / min(len(sets[pair[0]]), len(sets[pair[1]]))
        ),
    )


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
