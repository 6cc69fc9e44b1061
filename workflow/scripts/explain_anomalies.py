"""Why flagged cells are odd: their genes, their patterns, the types they are nearest to, damage."""

import numpy as np
import pandas as pd
import torch

from held_cells import SCORING_DEVICE, Cells, read_fits, some_of
from job import job, write_json, write_parquet, write_tsv
from omics_vae.model import VAE
from pattern_tables import (
    group_table,
    pattern_table,
    read_table,
    reason_warnings,
    size_table,
)
from patterns import (
    MARKER_COLUMNS,
    SignalAxes,
    assign,
    by_size,
    group_by_direction,
    marker_genes,
    normal_limit,
    signal_axes,
    signed,
    sum_genes,
)
from reference_profile import Reference, ReferenceProfile
from stored_counts import counts_memory
from technical_causes import (
    EVIDENCE,
    NONE_FOUND,
    causes_of,
    in_words,
    parents_of,
    technical_evidence,
)

# Flagged cells that define axes and patterns; further ones are assigned. The distances of 2,000
# cells take 32 MB, their residuals in 30,000 genes 240 MB.
DEFINING_CELLS = 2000
GENES_NAMED = 8  # a cell
DECODED_SHIFT = 0.2  # log2; a smaller shift of the decoded profile is not worth a name
# Of residuals.parquet: no figure shows more.
SHOWN_PATTERNS, SHOWN_CELLS, SHOWN_GENES = 20, 300, 15  # genes: a pattern and direction
PARENTS = ["parent_1", "parent_2"]
RESIDUAL_COLUMNS = ["pattern", "cell_id", "gene", "residual"]
CELL_COLUMNS = [
    *("cell_id", "sample", "donor", "pattern", "nearest_reference", "distance"),
    *("technical_cause", "basis", "genes", "doublet_probability", *PARENTS, *EVIDENCE),
]


def find_patterns(
    model: VAE, flagged: Cells, nearest: np.ndarray, reference: Reference, seed: int, device
) -> tuple[np.ndarray, SignalAxes, float]:
    """The pattern of each flagged cell (-1: none), the axes they differ along, the normal limit."""
    profile = reference.profile
    defining = some_of(flagged.obs.index, DEFINING_CELLS)
    chunks = profile.compare(model, flagged.take(defining), nearest[defining], device)
    residual = np.concatenate([chunk.residual.astype(np.float32) for chunk in chunks])
    axes = signal_axes(residual, seed)
    chunks = profile.compare(model, reference.held_out, reference.nearest_held_out, device)
    limit = normal_limit(np.concatenate([axes.place(chunk.residual) for chunk in chunks]))
    place = axes.place(residual)
    found = group_by_direction(place, limit)
    pattern = np.full(len(flagged), -1)
    pattern[defining] = found
    others = np.setdiff1d(np.arange(len(flagged)), defining)
    for chunk in profile.compare(model, flagged.take(others), nearest[others], device):
        pattern[others[chunk.cells]] = assign(axes.place(chunk.residual), place, found, limit)
    return by_size(pattern), axes, limit


def genes_of_cells(
    model: VAE,
    flagged: Cells,
    nearest: np.ndarray,
    with_hits: np.ndarray,
    profile: ReferenceProfile,
    device,
) -> pd.DataFrame:
    """The signed genes that carry each cell's score: columns basis, genes.

    ``counts``: the most surprising counts, as the residual channels weigh them. ``decoded``, for
    cells of which no gene is a hit (``with_hits`` False): the place in latent space is what is odd,
    so the genes that the model decodes furthest from the mean of the nearest reference group.
    """
    names, basis, genes = flagged.genes.to_numpy(), [], []
    for chunk in profile.compare(model, flagged, nearest, device):
        surprise = chunk.surprise()
        for cell, hit in enumerate(with_hits[chunk.cells]):
            carried = surprise[cell] if hit else chunk.decoded_shift[cell]
            of, least = (names, 0.0) if hit else (names[flagged.in_model], DECODED_SHIFT)
            top = np.argsort(-np.abs(carried), kind="stable")[:GENES_NAMED]
            top = top[np.abs(carried[top]) > least]
            basis.append("counts" if hit else "decoded")
            genes.append(signed(of[top], carried[top]))
    return pd.DataFrame({"basis": basis, "genes": genes}, dtype=object)


def pattern_markers(
    model: VAE,
    flagged: Cells,
    nearest: np.ndarray,
    pattern: np.ndarray,
    profile: ReferenceProfile,
    device,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """markers.tsv, the marker genes of each pattern; residuals.parquet, these of single cells."""
    in_one = np.flatnonzero(pattern >= 0)
    chunks = profile.compare(model, flagged.take(in_one), nearest[in_one], device)
    sums = sum_genes(chunks, pattern[in_one], nearest[in_one], profile.variance)
    tables = [
        marker_genes(of_one, profile.seen, flagged.genes).assign(pattern=f"P{k}")
        for k, of_one in enumerate(sums, start=1)
    ]
    # Tables without rows would change the types of the others.
    tables = [table for table in tables if len(table)]
    if not tables:
        return no_reasons()[1:]
    markers = pd.concat(tables, ignore_index=True)[MARKER_COLUMNS]
    return markers, cell_residuals(model, flagged, nearest, pattern, markers, profile, device)


def cell_residuals(
    model: VAE,
    flagged: Cells,
    nearest: np.ndarray,
    pattern: np.ndarray,
    markers: pd.DataFrame,
    profile: ReferenceProfile,
    device,
) -> pd.DataFrame:
    """residuals.parquet: the leading markers of the largest patterns in some cells of each.

    Each pattern has the same share of the cells, or all where it has fewer.
    """
    n_patterns = min(pattern.max() + 1, SHOWN_PATTERNS)
    cells = [np.flatnonzero(pattern == k) for k in range(n_patterns)]
    each = SHOWN_CELLS // n_patterns
    cells = np.concatenate([of[some_of(flagged.obs.index[of], each)] for of in cells])
    names = [f"P{k + 1}" for k in range(n_patterns)]
    leading = markers.groupby(["pattern", "direction"], sort=False).head(SHOWN_GENES)
    genes = leading.loc[leading["pattern"].isin(names), "gene"].drop_duplicates()
    at = flagged.genes.get_indexer(genes)
    chunks = profile.compare(model, flagged.take(cells), nearest[cells], device)
    residual = np.concatenate([chunk.residual[:, at] for chunk in chunks])
    return pd.DataFrame(
        {
            "pattern": np.repeat([names[k] for k in pattern[cells]], len(at)),
            "cell_id": np.repeat(flagged.obs.index.to_numpy()[cells], len(at)),
            "gene": np.tile(genes.to_numpy(), len(cells)),
            "residual": residual.ravel().astype(np.float32),
        }
    )


def reasons(
    model: VAE,
    flagged: Cells,
    rest: Cells,
    with_hits: np.ndarray,
    doublets: pd.DataFrame,
    reference: Reference,
    seed: int,
    device,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What is known of each flagged cell, and the two tables of :func:`pattern_markers`.

    ``rest``: the cells that are not flagged; ``with_hits``: flagged cells with a gene hit;
    ``doublets``: rows of the flagged cells. The first has CELL_COLUMNS, and ``causes``, lists.
    """
    profile = reference.profile
    nearest = profile.groups.nearest(flagged.latent)
    pattern, axes, limit = find_patterns(model, flagged, nearest, reference, seed, device)
    evidence, usual_ambient = technical_evidence(
        flagged,
        nearest,
        rest,
        reference,
        lambda residual: np.linalg.norm(axes.place(residual), axis=1) / limit,
    )
    cells = pd.concat(
        [
            genes_of_cells(model, flagged, nearest, with_hits, profile, device),
            doublets[["doublet_probability", *PARENTS]].reset_index(drop=True),
            evidence,
        ],
        axis=1,
    )
    cells[PARENTS] = cells[PARENTS].astype(object).fillna("")
    cells["cell_id"] = flagged.obs.index.to_numpy()
    for name in ("sample", "donor"):
        cells[name] = flagged.obs[name].astype(str).to_numpy() if name in flagged.obs else ""
    cells["pattern"] = [f"P{k + 1}" if k >= 0 else "" for k in pattern]
    cells["nearest_reference"] = np.array(profile.groups.names, dtype=object)[nearest]
    cells["distance"] = reference.distance(flagged.latent)
    rows = cells.to_dict("records")
    cells["causes"] = [causes_of(row, usual_ambient) for row in rows]
    cells["technical_cause"] = [
        in_words(causes, parents_of([row]))
        for row, causes in zip(rows, cells["causes"], strict=True)
    ]
    markers = pattern_markers(model, flagged, nearest, pattern, profile, device)
    return cells[[*CELL_COLUMNS, "causes"]], *markers


def read_doublets(files: list[str]) -> pd.DataFrame:
    """The doublet probabilities, index cell_id; none of bulk samples."""
    if not files:
        return pd.DataFrame(columns=["doublet_probability", *PARENTS], dtype=float)
    return pd.read_parquet(files[0]).set_index("cell_id")


def no_reasons() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The same of a run that flagged nobody."""
    numbers = {"distance", "doublet_probability", *EVIDENCE}
    cells = pd.DataFrame(columns=[*CELL_COLUMNS, "causes"], dtype=object)
    residuals = pd.DataFrame(columns=RESIDUAL_COLUMNS, dtype=object).astype({"residual": float})
    return (
        cells.astype({name: float for name in CELL_COLUMNS if name in numbers}),
        pd.DataFrame(columns=MARKER_COLUMNS),
        residuals,
    )


def summarise(cells: pd.DataFrame, patterns: pd.DataFrame, profile: ReferenceProfile) -> dict:
    """How many cells have which reason."""
    causes = pd.Series([cause for found in cells["causes"] for cause in found], dtype=object)
    return {
        "n_flagged": len(cells),
        "n_patterns": len(patterns),
        "n_in_pattern": int((cells["pattern"] != "").sum()),
        "n_without_cause": int((cells["technical_cause"] == NONE_FOUND).sum()),
        "n_decoded": int((cells["basis"] == "decoded").sum()),
        "causes": {name: int(n) for name, n in causes.value_counts().sort_index().items()},
        "n_groups": len(profile.groups.names),
        "groups_named_by": profile.groups.source,
        "warnings": reason_warnings(cells, patterns),
    }


if __name__ == "__main__":
    with job(snakemake) as log:
        source, output, seed = snakemake.input, snakemake.output, snakemake.params.seed
        torch.set_num_threads(snakemake.threads)
        device = SCORING_DEVICE
        # Without a query the first fold's model explains the flagged cells of all folds.
        [(model, cells)] = read_fits(source, snakemake.params.folds, counts_memory(snakemake))
        verdict = pd.read_parquet(source.cells)
        hits = pd.read_parquet(source.genes, columns=["cell_id"])
        doublets = read_doublets(source.doublets)
        reference = Reference.of(model, cells, seed, device)
        # In the order of their names, so that nothing depends on the order of the cells.
        ids = verdict.loc[verdict["is_anomaly"], "cell_id"].sort_values()
        reason, markers, residuals = no_reasons()
        if len(ids):
            reason, markers, residuals = reasons(
                model,
                cells.take(cells.obs.index.get_indexer(ids)),
                cells.take(~cells.obs.index.isin(ids)),
                ids.isin(hits["cell_id"]).to_numpy(),
                doublets.reindex(ids),
                reference,
                seed,
                device,
            )
        patterns = pattern_table(reason, markers)
        where = cells.obs.loc[verdict.loc[verdict["q_value"].notna(), "cell_id"]]
        donor = where["donor"].astype(str) if "donor" in where else ""
        query = pd.DataFrame({"sample": where["sample"].astype(str), "donor": donor})
        summary = summarise(reason, patterns, reference.profile)
        write_tsv(read_table(verdict, reason, doublets), output.cells_tsv)
        write_parquet(reason[CELL_COLUMNS], output.cells)
        write_tsv(patterns, output.patterns)
        write_tsv(markers, output.markers)
        write_parquet(residuals, output.residuals)
        write_tsv(size_table(reason, query), output.sizes)
        write_tsv(group_table(reference.profile, cells.genes), output.groups)
        write_json(summary, output.summary)
        log.info(
            "explain_anomalies: %d of %d flagged cells in %d patterns",
            summary["n_in_pattern"],
            summary["n_flagged"],
            summary["n_patterns"],
        )
