"""The tables of the report: their rows, what each column is called, how its values read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

# Found from here, for a module is imported from where it lies, and a script runs as a copy.
TEMPLATE = Path(__file__).parent.parent / "report" / "report.html"
NONE = "–"
MAX_ROWS = 200  # flagged cells in the report; anomaly/cells.tsv has them all
MAX_GENES = 6  # genes named for each of them


@dataclass(frozen=True)
class Column:
    """A column of a table in the report: its heading, what it says, how its values are printed."""

    name: str
    heading: str
    show: Callable[[object], str]
    is_number: bool = True


def whole(value: object) -> str:
    return NONE if pd.isna(value) else f"{int(value):,}"


def digits(value: object) -> str:
    """Three significant digits; large numbers in full."""
    if pd.isna(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: object) -> str:
    return NONE if pd.isna(value) else f"{100 * value:.3g} %"


def text(value: object) -> str:
    return NONE if value is None or pd.isna(value) or value == "" else str(value)


def yes_no(value: object) -> str:
    return "yes" if value else "no"


def make_table(rows: pd.DataFrame, columns: Iterable[Column]) -> dict:
    """Headings and printed cells, for the columns that the rows have."""
    present = [column for column in columns if column.name in rows]
    cells = [[column.show(value) for value in rows[column.name]] for column in present]
    return {
        "headings": [(column.heading, column.is_number) for column in present],
        "rows": [list(row) for row in zip(*cells, strict=True)],
    }


SAMPLES = (
    Column("sample", "Sample", text, False),
    Column("format", "Format", text, False),
    Column("n_genes", "Genes", whole),
    Column("n_cells", "Cells read", whole),
    Column("n_kept", "Cells kept", whole),
    Column("n_query", "Cells judged", whole),
    Column("n_flagged", "Flagged", whole),
    Column("share", "Share flagged", percent),
)
LOSSES = (
    Column("sample", "Sample", text, False),
    Column("what", "What was left out", text, False),
    Column("n", "Number", whole),
)
DROPPED = (
    Column("sample", "Sample", text, False),
    Column("quantity", "Quantity", text, False),
    Column("side", "Dropped if", text, False),
    Column("limit", "Limit", digits),
    Column("origin", "Where the limit came from", text, False),
    Column("n_dropped", "Cells beyond it", whole),
)
SPLITS = (
    Column("sample", "Sample", text, False),
    Column("role", "Role", text, False),
    Column("split", "Use", text, False),
    Column("n_cells", "Cells", whole),
)
LIBRARY_SIZES = (
    Column("sample", "Sample", text, False),
    Column("n_cells", "Cells", whole),
    *(Column(q, h, digits) for q, h in (("q05", "5 %"), ("q25", "25 %"), ("median", "Median"))),
    *(Column(q, h, digits) for q, h in (("q75", "75 %"), ("q95", "95 %"))),
)
EVIDENCE = (
    Column("dimension", "Dimension", whole),
    Column("kl", "KL (nats)", digits),
    Column("aggregated_kl", "KL of all cells together (nats)", digits),
    Column("mean_variance", "Variance of posterior means", digits),
    Column("ablation", "ELBO lost without it (nats)", digits),
    Column("ablation_se", "Its standard error", digits),
    Column("kept", "Kept", yes_no, False),
    Column("sure", "Beyond 2 s.e.", yes_no, False),
    Column("reason", "Why", text, False),
)
ELBO = (
    Column("stage", "Model", text, False),
    Column("n_latent", "Dimensions", whole),
    Column("elbo", "ELBO (nats per cell)", lambda value: f"{value:,.2f}"),
    Column("elbo_se", "Standard error", digits),
    Column("reconstruction", "Reconstruction", lambda value: f"{value:,.2f}"),
    Column("kl", "KL", digits),
)
LIKELIHOODS = (
    Column("likelihood", "Likelihood", text, False),
    Column("log_p", "log p(x) (nats per cell)", lambda value: f"{value:,.2f}"),
    Column("log_p_se", "Standard error", digits),
    Column("difference", "Against the chosen one", digits),
    Column("difference_se", "Standard error of the paired difference", digits),
    Column("chosen", "Chosen", yes_no, False),
)
RATE_DISTORTION = (
    Column("beta", "β", digits),
    Column("rate", "Rate (nats)", digits),
    Column("distortion", "Distortion (nats)", lambda value: f"{value:,.2f}"),
    Column("elbo", "ELBO (nats per cell)", lambda value: f"{value:,.2f}"),
    Column("gain", "Over the chosen one, cell by cell", digits),
    Column("gain_se", "Standard error", digits),
    Column("active_units", "Active dimensions", whole),
    Column("mutual_information", "I(x; z) (nats)", digits),
    Column("on_envelope", "On the envelope", yes_no, False),
    Column("chosen", "Chosen", yes_no, False),
)
GAPS = (
    Column("grouped_by", "Grouped by", lambda value: text(value).replace("_", " "), False),
    Column("group", "Group", text, False),
    Column("n_cells", "Cells", whole),
    Column("elbo", "ELBO (nats per cell)", lambda value: f"{value:,.2f}"),
    Column("log_p", "log p(x)", lambda value: f"{value:,.2f}"),
    Column("gap", "Amortization gap", digits),
    Column("gap_se", "Standard error", digits),
    Column("effective_samples", "Effective samples, median", digits),
)
STABILITY = (
    Column("seed", "Seed", whole),
    Column("other_seed", "Other seed", whole),
    Column("n_latent", "Dimensions", whole),
    Column("n_latent_other", "Of the other", whole),
    Column("canonical_correlation_mean", "Canonical correlation, mean", digits),
    Column("canonical_correlation_smallest", "Smallest", digits),
    Column("shared_neighbours", "Neighbours shared", percent),
    Column("score_spearman", "ρ of the scores", digits),
    Column("flagged_both", "Flagged by both", whole),
    Column("flagged_either", "By either", whole),
)
FLAGGED = (
    Column("cell_id", "Cell", text, False),
    Column("score", "Score", digits),
    Column("q_value", "q", digits),
    Column("pattern", "Pattern", text, False),
    Column("genes", "Genes that make it odd", text, False),
    Column("nearest_reference", "Nearest reference", text, False),
    Column("technical_cause", "Technical cause", text, False),
    Column("doublet_probability", "Doublet", percent),
    Column("p_value", "p", digits),
    Column("sample", "Sample", text, False),
    Column("library_size", "Library size", digits),
)
GENES = (
    Column("cell_id", "Cell or sample", text, False),
    Column("gene", "Gene", text, False),
    Column("observed", "Observed", whole),
    Column("expected", "Expected", digits),
    Column("log2_fold_change", "log2 fold change", digits),
    Column("z_score", "z", digits),
    Column("log10_p", "log10 p", digits),
    Column("q_value", "q", digits),
    Column("null", "Held against", text, False),
)
OUTLIERS = (
    Column("cell_id", "Cell or sample", text, False),
    Column("n_outlier_genes", "Outlier genes", whole),
    Column("n_up", "Up", whole),
    Column("n_down", "Down", whole),
    Column("share", "Of all genes", percent),
    Column("top_gene", "Surest gene", text, False),
    Column("top_log10_p", "Its log10 p", digits),
)
PATTERNS = (
    Column("pattern", "Pattern", text, False),
    Column("label", "Markers", text, False),
    Column("n_cells", "Cells", whole),
    Column("n_samples", "Samples", whole),
    Column("n_donors", "Donors", whole),
    Column("nearest_reference", "Nearest reference", text, False),
    Column("nearest_share", "Of its cells", percent),
    Column("distance", "Distance (1 = normal cell)", digits),
    Column("technical_cause", "Technical cause", text, False),
    Column("cause_share", "Cells with the commonest cause", percent),
)
PATTERN_EVIDENCE = (
    Column("pattern", "Pattern", text, False),
    Column("depth_z", "Depth, robust z", digits),
    Column("pct_mito", "% mitochondrial", digits),
    Column("pct_mito_reference", "% in nearest reference", digits),
    Column("mito_z", "Robust z", digits),
    Column("stress_z", "Dissociation genes, robust z", digits),
    Column("doublet_probability", "Doublet", percent),
    Column("ambient_share", "Ambient share fitted", percent),
    Column("ambient_rest", "Oddness left with it (1 = limit)", digits),
)
MARKERS = (
    Column("gene", "Gene", text, False),
    Column("direction", "Direction", text, False),
    Column("mean_observed", "Counts a cell", digits),
    Column("mean_reference", "Nearest reference", digits),
    Column("mean_expected", "Model", digits),
    Column("log2_fold_change", "log2 fold change", digits),
    Column("share", "Cells", percent),
    Column("q_value", "q", digits),
)
REFERENCE_GROUPS = (
    Column("group", "Reference group", text, False),
    Column("n_cells", "Cells", whole),
    Column("genes", "Marked by", text, False),
)
DOUBLETS = (
    Column("from", "Probability from", percent),
    Column("to", "to", percent),
    Column("n", "Held-out cells", whole),
    Column("predicted", "Mean probability", percent),
    Column("realised", "Share of doublets", percent),
)
CHECK = (
    Column("kind", "Anomaly", text, False),
    Column("strength", "Strength", text, False),
    Column("method", "Score", text, False),
    Column("n_injected", "Injected", whole),
    Column("auroc", "AUROC", digits),
    Column("auprc", "AUPRC", digits),
    Column("power", "Power", percent),
    Column("fdp", "Realised FDP", percent),
    Column("fpr", "Normal cells with p ≤ 5 %", percent),
    Column("spearman_depth", "ρ with depth", digits),
)
CHANNELS = (
    Column("channel", "Channel", text, False),
    Column("kind", "Kind", text, False),
    Column("what", "What it looks at", text, False),
    Column("spearman_depth", "ρ with depth", digits),
    Column("spearman_depth_query", "ρ with depth, cells not flagged", digits),
    Column("fpr_low_depth", "False positives, shallowest fifth", percent),
    Column("fpr_high_depth", "False positives, deepest fifth", percent),
    Column("n_leading", "Flagged cells it leads", whole),
)


def dropped_table(summaries: list[dict]) -> pd.DataFrame:
    """What each limit of the quality control dropped, in each sample."""
    rows = [
        {"sample": summary["sample"], **limit}
        for summary in summaries
        if summary["stage"] == "preprocess" and summary["sample"]
        for limit in summary.get("dropped_by", [])
    ]
    table = pd.DataFrame(
        rows, columns=["sample", "quantity", "side", "limit", "origin", "n_dropped"]
    )
    table["side"] = table["side"].map({"lower": "below", "upper": "above"})
    return table


def flagged_table(query: pd.DataFrame, reasons: pd.DataFrame) -> pd.DataFrame:
    """The flagged cells, the oddest first, each with its reasons.

    ``reasons``: anomaly/cells.tsv; ``query``: rows of anomaly/cells.parquet. Of the genes the first
    ``MAX_GENES``; a cell without any has the channel that leads instead.
    """
    flagged = query[query["is_anomaly"]].sort_values(
        ["p_value", "score", "cell_id"], ascending=[True, False, True]
    )
    columns = ["pattern", "nearest_reference", "technical_cause", "doublet_probability", "genes"]
    flagged = flagged.head(MAX_ROWS).merge(reasons[["cell_id", *columns]], how="left", on="cell_id")
    named = flagged["genes"].fillna("").str.split(", ")
    more = named.str.len() - MAX_GENES
    flagged["genes"] = named.str[:MAX_GENES].str.join(", ") + [
        f" and {n} more" if n > 0 else "" for n in more
    ]
    channel = "no single gene; " + flagged["leading_channel"].str.replace("_", " ")
    flagged["genes"] = flagged["genes"].where(flagged["genes"] != "", channel)
    return flagged
