"""The columns of the report's tables of how it was made, stage by stage."""

from report_tables import Column, digits, percent, text, two_places, whole, words, yes_no

LOSSES = (
    Column("sample", "Sample", text, False),
    Column("what", "What was left out", text, False),
    Column("n", "Number", whole),
)
DROPPED = (
    Column("sample", "Sample", text, False),
    Column("quantity", "Quantity", text, False),
    Column("side", "Dropped if", text, False),
    Column("limit", "Limit", digits, says="Cells beyond it were dropped."),
    Column("origin", "Where the limit came from", text, False),
    Column("n_dropped", "Cells beyond it", whole, says="A cell may lie beyond several limits."),
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
LIKELIHOODS = (
    Column("likelihood", "Likelihood", text, False),
    Column("log_p", "log p(x) (nats per cell)", two_places),
    Column("log_p_se", "Standard error", digits),
    Column("difference", "Against the chosen one", digits),
    Column("difference_se", "Standard error of the paired difference", digits),
    Column("chosen", "Chosen", yes_no, False),
)
EVIDENCE = (
    Column("dimension", "Dimension", whole),
    Column(
        "kl",
        "KL (nats)",
        digits,
        says="What the dimension tells of a cell, on average; 0 is nothing.",
    ),
    Column(
        "aggregated_kl",
        "KL of all cells together (nats)",
        digits,
        says="How far all cells together are from the prior.",
    ),
    Column(
        "mean_variance",
        "Variance of posterior means",
        digits,
        says="Spread of the cells along the dimension; 0 where they all lie at one place.",
    ),
    Column(
        "ablation",
        "ELBO lost without it (nats)",
        digits,
        says="How much worse held-out cells are described when it is set to its mean.",
    ),
    Column("ablation_se", "Its standard error", digits),
    Column("kept", "Kept", yes_no, False),
    Column("sure", "Beyond 2 s.e.", yes_no, False),
    Column("reason", "Why", text, False),
)
ELBO = (
    Column("stage", "Model", text, False),
    Column("n_latent", "Dimensions", whole),
    Column("elbo", "ELBO (nats per cell)", two_places, says="Higher is better."),
    Column("elbo_se", "Standard error", digits),
    Column(
        "reconstruction",
        "Reconstruction",
        two_places,
        says="How well cells are decoded; higher is better.",
    ),
    Column("kl", "KL", digits, says="What their codes cost; the ELBO is the one less the other."),
)
RATE_DISTORTION = (
    Column("beta", "β", digits),
    Column("rate", "Rate (nats)", digits),
    Column("distortion", "Distortion (nats)", two_places),
    Column("elbo", "ELBO (nats per cell)", two_places),
    Column("gain", "Over the chosen one, cell by cell", digits),
    Column("gain_se", "Standard error", digits),
    Column("active_units", "Active dimensions", whole),
    Column("mutual_information", "I(x; z) (nats)", digits),
    Column("on_envelope", "On the envelope", yes_no, False),
    Column("chosen", "Chosen", yes_no, False),
)
GAPS = (
    Column("grouped_by", "Grouped by", words, False),
    Column("group", "Group", text, False),
    Column("n_cells", "Cells", whole),
    Column("elbo", "ELBO (nats per cell)", two_places),
    Column("log_p", "log p(x)", two_places),
    Column("gap", "Amortization gap", digits),
    Column("gap_se", "Standard error", digits),
    Column("effective_samples", "Effective samples, median", digits),
)
STABILITY = (
    Column("seed", "Seed", whole),
    Column("other_seed", "Other seed", whole),
    Column("n_latent", "Dimensions", whole),
    Column("n_latent_other", "Of the other", whole),
    Column(
        "canonical_correlation_mean",
        "Canonical correlation, mean",
        digits,
        says="1: one latent space is a linear image of the other.",
    ),
    Column("canonical_correlation_smallest", "Smallest", digits),
    Column(
        "shared_neighbours",
        "Neighbours shared",
        percent,
        says="Of a cell's neighbours, those that both seeds agree on.",
    ),
    Column(
        "score_spearman", "ρ of the scores", digits, says="Agreement of the order of the cells."
    ),
    Column("flagged_both", "Flagged by both", whole),
    Column("flagged_either", "By either", whole),
)
