"""A group of reference cells to hold out of a second training: a cell type that the model lacks."""

import numpy as np
import pandas as pd

from held_cells import read_cells
from job import job, read_json, write_json, write_parquet
from reference_groups import ReferenceGroups, reference_groups
from stored_counts import counts_memory

# A group smaller than this has too few cells to inject, a larger one leaves too few to learn from.
LEAST_CELLS, LARGEST_SHARE = 20, 0.25


def choose_group(groups: ReferenceGroups) -> int | None:
    """The position of the group of median size among those that can be held out; None without."""
    sizes = np.bincount(groups.code[groups.code >= 0], minlength=len(groups.names))
    fitting = np.flatnonzero((sizes >= LEAST_CELLS) & (sizes <= LARGEST_SHARE * len(groups.code)))
    if not len(fitting) or len(groups.names) < 2:
        return None
    return int(fitting[np.argsort(sizes[fitting], kind="stable")[len(fitting) // 2]])


if __name__ == "__main__":
    with job(snakemake) as log:
        files = snakemake.input
        content = read_json(files.description)
        paths = files.counts, files.library_size, files.latent
        cells = read_cells(*paths, content, counts_memory(snakemake))
        reference = cells.take((cells.obs["role"] == "reference").to_numpy())
        groups = reference_groups(reference.latent, reference.obs, snakemake.params.seed)
        chosen = choose_group(groups)
        held = np.zeros(len(reference), dtype=bool) if chosen is None else groups.code == chosen
        table = pd.DataFrame({"cell_id": reference.obs.index.to_numpy()[held]})
        write_parquet(table, snakemake.output.group)
        write_json(
            {
                "group": None if chosen is None else groups.names[chosen],
                "source": groups.source,
                "n_cells": int(held.sum()),
                "n_reference": len(reference),
                "warnings": [],
            },
            snakemake.output.summary,
        )
        log.info("choose_held_group: %d cells", held.sum())
