"""Whether a flagged cell is damaged, mixed or badly sampled rather than of a new kind.

Each trait of the cell is held against normal cells of its nearest reference group, in robust SDs:
(value - median) / (1.4826 MAD).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy.sparse as sp

from held_cells import Cells
from omics_vae.counts import Counts
from reference_profile import Reference, ReferenceProfile

# The limit of the literature's quality control, 3 MAD (McCarthy et al. 2017,
# doi:10.1093/bioinformatics/btw777).
LIMIT = 3.0
# The least distance from the median that passes it: in a clean group the MAD is minute.
LEAST = {
    "depth": np.log(2.0),  # half or twice the median
    "mito": 2.0,  # percentage points
    "stress": 2.0,  # percentage points
}
FEWEST_NORMAL = 10  # cells; a MAD of fewer is a guess
DOUBLET_LIKELY = 0.5
# Log-likelihood that ambient counts must add to the group alone: p = 1e-5 by its likelihood ratio.
AMBIENT_GAIN = 10.0
# Normal cells at the border of two groups look like mixtures too; ambient is more than 95 % of
# them have.
AMBIENT_QUANTILE = 0.95
# A new type in a sample is often nearer to the mixture than to one group. Ambient counts explain
# a cell only if, with them, it no longer leaves the normal range where flagged cells do (1 = its
# limit). Nine in ten cells of held-out types stayed above 1, of cells with 60 % ambient counts
# nine in ten came below 0.6.
AMBIENT_REST = 1.0
PATTERN_SHARE = 0.5  # of the cells of a pattern that have a cause for it to be the pattern's
NONE_FOUND = "none found"
# Genes that dissociating a tissue switches on within minutes: van den Brink et al. 2017,
# doi:10.1038/nmeth.4437.
STRESS_GENES = frozenset(
    (
        *("FOS", "FOSB", "JUN", "JUNB", "JUND", "EGR1", "IER2", "IER3", "ATF3", "DUSP1", "ZFP36"),
        *("BTG2", "SOCS3", "NR4A1", "HSPA1A", "HSPA1B", "HSPA8", "HSPB1", "HSPE1", "HSPH1"),
        *("HSP90AA1", "HSP90AB1", "DNAJA1", "DNAJB1"),
    )
)
EVIDENCE = [
    *("depth_z", "pct_mito", "pct_mito_reference", "mito_z", "stress_z"),
    *("ambient_share", "ambient_gain", "ambient_rest"),
]
CHUNK = 512  # cells held dense at once
HALVINGS = 30  # of the interval [0, 1]: the ambient share is right to 1e-9


def robust_z(
    value: np.ndarray, group: np.ndarray, normal: np.ndarray, normal_group: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Robust SDs from the median of normal cells of the same group, and that median (cells,).

    The SD is at least ``least`` / 3, so that nothing nearer than ``least`` passes the limit of 3.
    Groups of fewer than 10 normal cells are held against all. What is missing has z = 0.
    """
    everyone = normal[np.isfinite(normal)]
    middle, spread = np.full(len(value), np.nan), np.full(len(value), np.nan)
    for k in np.unique(group):
        of_k = normal[(normal_group == k) & np.isfinite(normal)]
        of_k = of_k if len(of_k) >= FEWEST_NORMAL else everyone
        if len(of_k):
            middle[group == k] = np.median(of_k)
            spread[group == k] = 1.4826 * np.median(np.abs(of_k - np.median(of_k)))
    z = (value - middle) / np.maximum(spread, least / LIMIT)
    return np.nan_to_num(z), middle


def traits(counts: Counts, obs: pd.DataFrame, genes: pd.Index) -> dict[str, np.ndarray]:
    """log total count; % of counts in mitochondrial and in dissociation genes (cells,)."""
    stress = np.flatnonzero(genes.astype(str).str.upper().isin(STRESS_GENES))
    total = np.maximum(counts.sum(1), 1.0)
    in_stress = counts.of_genes(stress).sum(1)
    unknown = pd.Series(np.nan, index=obs.index)
    return {
        "depth": np.log(total),
        "mito": obs.get("pct_mito", unknown).to_numpy(np.float64),
        "stress": 100.0 * in_stress / total,
    }


def ambient_profiles(counts: Counts, sample: np.ndarray) -> dict[str, np.ndarray]:
    """The shares of the genes over all given cells of each sample, and of all under "".

    For what floats in a droplet beside its cell. Give it the cells that are not flagged: with them,
    a new type that makes up a tenth of the sample would explain itself.
    """
    names, code = np.unique(sample, return_inverse=True)
    total = np.zeros((len(names), counts.shape[1]))
    for rows, x in counts.blocks():
        of_cells = np.ones(x.shape[0]), (code[rows], np.arange(x.shape[0]))
        total += (sp.csr_matrix(of_cells, (len(names), x.shape[0])) @ x).toarray()
    totals = dict(zip(names, total, strict=True)) | {"": total.sum(0)}
    return {name: (of_one + 1e-3) / (of_one + 1e-3).sum() for name, of_one in totals.items()}


def fit_ambient(
    counts: sp.csr_matrix, group: np.ndarray, ambient: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The ambient share a of each cell, multinomial with shares (1 - a) group + a ambient.

    .. math:: \\ell(a) = \\sum_g x_g \\log((1-a)\\,p_g + a\\,s_g)

    It is concave in a, so halving the interval by the sign of its slope finds the maximum.
    ``group`` p and ``ambient`` s: (cells, genes), positive, rows that sum to 1. Returns a and the
    gain l(a) - l(0) in nats (cells,).
    """
    n_cells = counts.shape[0]
    row = np.repeat(np.arange(n_cells), np.diff(counts.indptr))
    x, p = counts.data.astype(np.float64), group[row, counts.indices]
    towards = ambient[row, counts.indices] - p

    def of_cells(values: np.ndarray) -> np.ndarray:
        return np.bincount(row, values, minlength=n_cells)

    low, high = np.zeros(n_cells), np.ones(n_cells)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        rises = of_cells(x * towards / (p + middle[row] * towards)) > 0
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    return low, of_cells(x * np.log1p(low[row] * towards / p))


def ambient_evidence(
    cells: Cells, group: np.ndarray, rest: Cells, profile: ReferenceProfile, strength: Callable
) -> np.ndarray:
    """Ambient share, its gain, and the ``strength`` of the residuals left with it (3, cells).

    ``rest``: the cells whose mean profile is ambient, sample by sample.
    """
    profiles = ambient_profiles(rest.counts, rest.obs["sample"].astype(str).to_numpy())
    sample, parts = cells.obs["sample"].astype(str), [np.zeros((3, 0))]
    for start in range(0, len(cells), CHUNK):
        chunk = slice(start, start + CHUNK)
        # A sample all of whose cells are flagged has no profile of its own.
        ambient = np.stack([profiles.get(name, profiles[""]) for name in sample.iloc[chunk]])
        normal, counts = profile.share[group[chunk]], cells.counts[chunk]
        share, gain = fit_ambient(counts, normal, ambient)
        x = counts.toarray().astype(np.float64)
        mixed = (1.0 - share)[:, None] * normal + share[:, None] * ambient
        left = profile.pearson(x, x.sum(1, keepdims=True) * mixed)
        parts.append(np.stack([share, gain, strength(left)]))
    return np.concatenate(parts, axis=1)


def technical_evidence(
    flagged: Cells, nearest: np.ndarray, rest: Cells, reference: Reference, strength: Callable
) -> tuple[pd.DataFrame, float]:
    """The numbers behind a technical cause of each flagged cell, and the usual ambient share.

    ``rest``: all cells that are not flagged; ``strength``: how far residuals (cells, genes) leave
    the normal range where flagged cells do; 1 is its limit.
    """
    normal, profile, held_out = reference.cells, reference.profile, reference.held_out
    own, usual = (traits(some.counts, some.obs, some.genes) for some in (flagged, normal))
    table, medians = {}, {}
    for name, least in LEAST.items():
        table[f"{name}_z"], medians[name] = robust_z(
            own[name], nearest, usual[name], reference.nearest, least
        )
    table["pct_mito"], table["pct_mito_reference"] = own["mito"], medians["mito"]
    ambient = ambient_evidence(flagged, nearest, rest, profile, strength)
    table |= dict(zip(EVIDENCE[-3:], ambient, strict=True))
    share = ambient_evidence(held_out, reference.nearest_held_out, rest, profile, strength)[0]
    return pd.DataFrame(table)[EVIDENCE], float(np.quantile(share, AMBIENT_QUANTILE))


def causes_of(cell: dict, usual_ambient: float) -> list[str]:
    """The technical causes that a flagged cell's evidence speaks for, the surest first.

    Depth explains no direction: expectations are for the cell's own depth, and new types may be
    smaller or larger than known ones. So it counts only for cells in no pattern.
    """
    found = []
    if cell["doublet_probability"] >= DOUBLET_LIKELY:
        found.append("doublet")
    if cell["mito_z"] > LIMIT:
        found.append("mitochondrial")
    mixed = cell["ambient_share"] > usual_ambient and cell["ambient_gain"] > AMBIENT_GAIN
    # A doublet is a mixture as well; the two cannot be told apart by this.
    if mixed and cell["ambient_rest"] < AMBIENT_REST and "doublet" not in found:
        found.append("ambient")
    if cell["stress_z"] > LIMIT:
        found.append("dissociation stress")
    if not cell["pattern"] and abs(cell["depth_z"]) > LIMIT:
        found.append("shallow" if cell["depth_z"] < 0 else "deep")
    return found


def of_pattern(causes: list[list[str]]) -> tuple[list[str], float]:
    """The causes that half of the cells of a pattern have, and the share of the commonest one."""
    shares = pd.Series([cause for cell in causes for cause in cell], dtype=object).value_counts()
    shares = shares.sort_index().sort_values(ascending=False, kind="stable") / max(len(causes), 1)
    chosen = shares[shares >= PATTERN_SHARE]
    return list(chosen.index), float(shares.iloc[0]) if len(shares) else 0.0


def parents_of(cells: list[dict]) -> tuple[str, ...]:
    """The two reference groups that most of the likely doublets among ``cells`` are made of."""
    pairs = [
        tuple(sorted((cell["parent_1"], cell["parent_2"])))
        for cell in cells
        if cell["doublet_probability"] >= DOUBLET_LIKELY and cell["parent_1"] and cell["parent_2"]
    ]
    return max(sorted(set(pairs)), key=pairs.count, default=())


def in_words(causes: list[str], parents: tuple[str, ...]) -> str:
    """``doublet of B and CD4 T; mitochondrial``; the parents only where they are known."""
    doublet = f"doublet of {' and '.join(parents)}" if parents else "doublet"
    words = [doublet if cause == "doublet" else cause for cause in causes]
    return "; ".join(words) or NONE_FOUND
