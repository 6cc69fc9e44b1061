"""The tables that people read of the patterns, and what the report warns of."""

import numpy as np
import pandas as pd

from patterns import label
from reference_profile import ReferenceProfile
from technical_causes import EVIDENCE, NONE_FOUND, in_words, of_pattern, parents_of

MARKERS_NAMED = 10  # a direction and pattern, in patterns.tsv; markers.tsv has them all
NO_PATTERN = "no pattern"
PATTERN_COLUMNS = [
    *("pattern", "label", "n_cells", "share_of_flagged", "n_samples", "n_donors"),
    *("nearest_reference", "nearest_share", "distance", "technical_cause", "cause_share"),
    *("n_markers", "up", "down", "doublet_probability", *EVIDENCE),
]
SIZE_COLUMNS = ["pattern", "sample", "donor", "n_cells", "share_of_query"]
VERDICT = ["cell_id", "sample", "score", "p_value", "q_value", "is_anomaly"]
REASON = ["pattern", "nearest_reference", "doublet_probability", "technical_cause", "genes"]
DAMAGED_SHARE = 0.5  # of the flagged cells; with more of them a reader should look at quality first


def pattern_table(cells: pd.DataFrame, markers: pd.DataFrame) -> pd.DataFrame:
    """patterns.tsv: a row a pattern, the largest first; evidence as medians over its cells.

    ``cells``: a row a flagged cell, with ``causes``, a list; ``markers``: markers.tsv.
    """
    rows = []
    for k in range(1, 1 + cells.loc[cells["pattern"] != "", "pattern"].nunique()):
        own, found = (table[table["pattern"] == f"P{k}"] for table in (cells, markers))
        nearest = own["nearest_reference"].value_counts().sort_index()
        causes, share = of_pattern(list(own["causes"]))
        parents = parents_of(own.to_dict("records"))
        row = {
            "pattern": f"P{k}",
            "label": label(found),
            "n_cells": len(own),
            "share_of_flagged": len(own) / len(cells),
            "n_samples": own["sample"].nunique(),
            "n_donors": own.loc[own["donor"] != "", "donor"].nunique(),
            "nearest_reference": nearest.idxmax(),
            "nearest_share": nearest.max() / len(own),
            "technical_cause": in_words(causes, parents),
            "cause_share": share,
            "n_markers": len(found),
        }
        for side in ("up", "down"):
            genes = found.loc[found["direction"] == side, "gene"]
            row[side] = ", ".join(genes.head(MARKERS_NAMED))
        medians = own[["distance", "doublet_probability", *EVIDENCE]].astype(float).median()
        rows.append(row | medians.to_dict())
    return pd.DataFrame(rows, columns=PATTERN_COLUMNS)


def size_table(cells: pd.DataFrame, query: pd.DataFrame) -> pd.DataFrame:
    """sizes.tsv: the flagged cells of each pattern in each sample and donor.

    ``query``: sample and donor of every query cell; ``share_of_query`` is of those.
    """
    total = query.groupby(["sample", "donor"]).size()
    named = cells.assign(pattern=cells["pattern"].replace("", NO_PATTERN))
    sizes = named.groupby(["pattern", "sample", "donor"]).size().rename("n_cells").reset_index()
    keys = pd.MultiIndex.from_frame(sizes[["sample", "donor"]])
    sizes["share_of_query"] = sizes["n_cells"] / total.reindex(keys).to_numpy()
    sizes["number"] = pd.to_numeric(sizes["pattern"].str[1:], errors="coerce")  # P10 after P9
    sizes = sizes.sort_values(["number", "sample", "donor"], ignore_index=True)
    return sizes[SIZE_COLUMNS]


def group_table(profile: ReferenceProfile, genes: pd.Index) -> pd.DataFrame:
    """groups.tsv: the reference groups, their cells and the genes that mark each of them."""
    groups = profile.groups
    sizes = np.bincount(groups.code[groups.code >= 0], minlength=len(groups.names))
    everyone = np.average(profile.share, axis=0, weights=sizes)
    marking = (profile.share - everyone) / np.sqrt(everyone)
    top = [", ".join(genes[np.argsort(-row, kind="stable")[:MARKERS_NAMED]]) for row in marking]
    return pd.DataFrame(
        {"group": groups.names, "n_cells": sizes, "named_by": groups.source, "genes": top}
    )


def read_table(verdict: pd.DataFrame, cells: pd.DataFrame, doublets: pd.DataFrame) -> pd.DataFrame:
    """anomaly/cells.tsv: the judged cells of ``verdict`` with the reasons of the flagged ones.

    ``doublets``: index cell_id, with a doublet_probability.
    """
    judged = verdict.loc[verdict["q_value"].notna(), VERDICT]
    texts = [name for name in REASON if name != "doublet_probability"]
    table = judged.merge(cells[["cell_id", *texts]], how="left", on="cell_id")
    table[texts] = table[texts].fillna("")
    probability = doublets["doublet_probability"].reindex(table["cell_id"])
    return table.assign(doublet_probability=probability.to_numpy())[[*VERDICT, *REASON]]


def reason_warnings(cells: pd.DataFrame, patterns: pd.DataFrame) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    found, damaged = [], int((cells["technical_cause"] != NONE_FOUND).sum())
    if damaged and damaged >= DAMAGED_SHARE * len(cells):
        most = pd.Series([cause for causes in cells["causes"] for cause in causes]).mode()[0]
        found.append(
            f"{damaged} of {len(cells)} flagged cells have a technical cause, most often "
            f"{most}; look at their quality before any biology, or filter such cells out "
            "(preprocess.filter_cells)."
        )
    alone = patterns.loc[patterns["n_samples"] == 1, "pattern"]
    if len(alone) and cells["sample"].nunique() > 1:
        found.append(
            f"{len(alone)} of {len(patterns)} patterns come from one sample alone "
            f"({', '.join(alone.head(5))}); an effect of its batch looks the same, so confirm them "
            "in another sample."
        )
    return found
