"""The columns of the report's tables of what was found: headings, and how to read the numbers."""

from report_tables import Column, digits, percent, text, whole, yes_no

SAMPLES = (
    Column("sample", "Sample", text, False),
    Column("format", "Format", text, False),
    Column("n_genes", "Genes", whole),
    Column("n_cells", "Cells read", whole, says="In the file, before quality control."),
    Column("n_kept", "Cells kept", whole, says="Left after the limits of the quality control."),
    Column(
        "n_query",
        "Cells judged",
        whole,
        says="Cells that got a p-value.",
    ),
    Column(
        "n_flagged",
        "Flagged",
        whole,
        says="Those of them with a q-value up to the false discovery rate.",
    ),
    Column(
        "share",
        "Share flagged",
        percent,
        says="Flagged among those judged; of few cells it says little.",
    ),
)
FLAGGED = (
    Column("cell_id", "Cell", text, False),
    Column(
        "score",
        "Score",
        digits,
        says="Evidence against the cell being normal, all channels together; higher is odder.",
    ),
    Column(
        "q_value",
        "q",
        digits,
        says="The false discovery rate at which the cell would just be flagged.",
    ),
    Column(
        "pattern",
        "Pattern",
        text,
        False,
        says="The group of flagged cells that are odd alike; none where the cell is odd alone.",
        has_menu=True,
    ),
    Column(
        "genes",
        "Genes that make it odd",
        text,
        False,
        is_long=True,
        says="+ higher, − lower than expected of this cell; the surest first.",
    ),
    Column(
        "nearest_reference",
        "Nearest reference",
        text,
        False,
        says="The reference group it comes closest to.",
        has_menu=True,
    ),
    Column(
        "technical_cause",
        "Technical cause",
        text,
        False,
        says="A guess from depth, mitochondria, stress, doublets and ambient counts; no verdict.",
        has_menu=True,
    ),
    Column("doublet_probability", "Doublet", percent, says="That two cells shared the droplet."),
    Column(
        "p_value",
        "p",
        digits,
        says="How rarely a normal cell is at least as odd.",
    ),
    Column("sample", "Sample", text, False, has_menu=True),
    Column(
        "library_size", "Library size", digits, says="Depth; it should not decide who is flagged."
    ),
)
GENES = (
    Column("cell_id", "Cell", text, False),
    Column("gene", "Gene", text, False),
    Column("observed", "Observed", whole, says="Counts of the gene in this cell."),
    Column(
        "expected",
        "Expected",
        digits,
        says="Counts that the model, or the reference, expects of this cell.",
    ),
    Column(
        "log2_fold_change",
        "log2 fold change",
        digits,
        says="Observed over expected; 1 is twice as much.",
    ),
    Column("z_score", "z", digits, says="The p-value as a normal quantile, with its sign."),
    Column("log10_p", "log10 p", digits, says="Two-sided; −6 is one in a million."),
    Column("q_value", "q", digits, says="False discovery rate within the cell."),
    Column(
        "null",
        "Held against",
        text,
        False,
        says="The model, or for genes that it does not decode the reference's pooled rate.",
        has_menu=True,
    ),
)
OUTLIERS = (
    Column("cell_id", "Cell", text, False),
    Column("sample", "Sample", text, False, has_menu=True),
    Column("is_anomaly", "Flagged", yes_no, False, has_menu=True),
    Column(
        "n_outlier_genes",
        "Outlier genes",
        whole,
        says="Genes beyond the false discovery rate within the cell.",
    ),
    Column("n_up", "Up", whole),
    Column("n_down", "Down", whole),
    Column("share", "Of all genes", percent, says="Outlier genes among all that were tested."),
    Column("top_gene", "Surest gene", text, False),
    Column(
        "top_log10_p",
        "Its log10 p",
        digits,
        says="Of its surest gene; a cell without an outlier gene has one too.",
    ),
)
PATTERNS = (
    Column("pattern", "Pattern", text, False),
    Column("label", "Markers", text, False),
    Column("n_cells", "Cells", whole, says="Flagged cells that are odd alike."),
    Column("n_samples", "Samples", whole),
    Column(
        "n_donors",
        "Donors",
        whole,
        says="A pattern of one donor may be the donor's, one of many is a finding.",
    ),
    Column("nearest_reference", "Nearest reference", text, False),
    Column(
        "nearest_share",
        "Of its cells",
        percent,
        says="Cells of the pattern whose nearest group this is.",
    ),
    Column(
        "distance",
        "Distance (1 = normal cell)",
        digits,
        says="From the nearest group, in units of a normal cell's distance from it.",
    ),
    Column("technical_cause", "Technical cause", text, False),
    Column(
        "cause_share",
        "Cells with the commonest cause",
        percent,
        says="Cells of the pattern that show its commonest technical cause.",
    ),
)
PATTERN_EVIDENCE = (
    Column("pattern", "Pattern", text, False),
    Column(
        "depth_z",
        "Depth, robust z",
        digits,
        says="Depth against the reference; beyond ±3 the cells are deep or shallow.",
    ),
    Column("pct_mito", "% mitochondrial", digits, says="High where cells die."),
    Column("pct_mito_reference", "% in nearest reference", digits),
    Column("mito_z", "Robust z", digits, says="Of the mitochondrial share; beyond 3 it is high."),
    Column(
        "stress_z",
        "Dissociation genes, robust z",
        digits,
        says="Of genes that dissociation switches on; beyond 3 they are high.",
    ),
    Column(
        "doublet_probability",
        "Doublet",
        percent,
        says="Near 100 %, the pattern is two types in one droplet.",
    ),
    Column(
        "ambient_share",
        "Ambient share fitted",
        percent,
        says="Share of the counts that the soup of the sample would have to give.",
    ),
    Column(
        "ambient_rest",
        "Oddness left with it (1 = limit)",
        digits,
        says="Below 1, ambient counts explain the pattern.",
    ),
)
MARKERS = (
    Column("gene", "Gene", text, False),
    Column("direction", "Direction", text, False),
    Column(
        "mean_observed", "Counts a cell", digits, says="Mean counts of the gene in the pattern."
    ),
    Column(
        "mean_reference",
        "Nearest reference",
        digits,
        says="Its mean in the nearest reference group.",
    ),
    Column("mean_expected", "Model", digits, says="What the model expects of these cells."),
    Column(
        "log2_fold_change",
        "log2 fold change",
        digits,
        says="Observed over expected; 1 is twice as much.",
    ),
    Column(
        "share",
        "Cells",
        percent,
        says="Cells of the pattern in which it departs in this direction.",
    ),
    Column("q_value", "q", digits, says="It ranks genes: the cells were chosen by what it tests."),
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
    Column("n_injected", "Injected", whole, says="Anomalies put in, a draw."),
    Column(
        "auroc",
        "AUROC",
        digits,
        says="Chance that an anomaly scores above a normal cell; 0.5 is guessing, 1 perfect.",
    ),
    Column(
        "auprc",
        "AUPRC",
        digits,
        says="Precision over all thresholds; guessing gives the share of anomalies.",
    ),
    Column("power", "Power", percent, says="Share of the anomalies that are flagged."),
    Column(
        "fdp",
        "Realised FDP",
        percent,
        says="Normal cells among the flagged; on average at most the false discovery rate.",
    ),
    Column("fpr", "Normal cells with p ≤ 5 %", percent, says="Should be near 5 %."),
    Column("spearman_depth", "ρ with depth", digits, says="Should be near 0."),
)
CHANNELS = (
    Column("channel", "Channel", text, False),
    Column("kind", "Kind", text, False),
    Column("what", "What it looks at", text, False),
    Column("spearman_depth", "ρ with depth", digits),
    Column("spearman_depth_query", "ρ with depth, cells not flagged", digits),
    Column("fpr_low_depth", "False positives, shallowest fifth", percent),
    Column("fpr_high_depth", "False positives, deepest fifth", percent),
    Column(
        "n_leading",
        "Flagged cells it leads",
        whole,
        says="Flagged cells that stand out most in this channel.",
    ),
)
