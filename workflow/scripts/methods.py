"""How the run was made, in words for a methods section."""

import re

from references import cited_in
from report_tables import counted

# What Markdown acts on; with a backslash in front it is shown. What our own words hold (seurat_v3,
# p <= 0.001, A & B) does not act.
ACTS = re.compile(r"[\\`*~$\[\]]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=#?\w+;)")
LIBRARY_SIZES = {
    "total": "the total counts of all genes that the samples share, before genes were selected",
    "median_of_ratios": "the median of ratios to a reference profile over all genes that the "
    "samples share (Anders & Huber 2010)",
    "column": "a quantity given with the data",
}
SPLIT_BY = {"donor": "whole donors", "cell": "cells drawn at random within each sample"}


def _setting(config: dict, key: str, default: object = None) -> object:
    """The value at ``section.key``; the default where this config has no such key."""
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return default
        config = config[part]
    return config


def _preprocessing(config: dict, stages: dict[str, dict]) -> str:
    found = stages.get("preprocess", {})
    limits = _setting(config, "preprocess.filter_cells", {})
    fixed = [f"{k} = {v}" for k, v in limits.items() if v is not None and k != "n_mads"]
    sentences = []
    if fixed:
        sentences.append(f"Cells were filtered by fixed limits ({', '.join(fixed)}).")
    if limits.get("n_mads") is not None:
        sentences.append(
            f"In each sample, cells further than {limits['n_mads']} scaled median absolute "
            "deviations from the median of log counts, log genes or mitochondrial share were "
            "dropped."
        )
    min_cells = _setting(config, "preprocess.select_features.min_cells")
    n_features = _setting(config, "preprocess.select_features.n_features")
    sentences.append(
        f"Of the {found.get('n_genes', 'shared')} genes that all samples share and that at least "
        f"{min_cells} cells express, {found.get('n_selected', n_features)} were selected "
        f"(up to {n_features} by variability, {found.get('method', 'seurat_v3')}, Stuart et al. "
        "2019, as in Scanpy, Wolf et al. 2018, and those of a given list)."
    )
    split = SPLIT_BY.get(found.get("split_by", ""), "cells")
    if stages["anomaly"]["is_ranking"]:
        n_folds, share = config["anomaly"]["folds"], config["preprocess"]["split"]["validation"]
        sentences.append(
            f"All cells were dealt to {n_folds} folds by {split}; a share of {share} stopped the "
            "training."
        )
    else:
        sentences.append(
            f"Reference cells were split by {split} into training, validation "
            f"({_setting(config, 'preprocess.split.validation')}) and calibration "
            f"({_setting(config, 'preprocess.split.calibration')}); query cells were in none of "
            "them. The limits on cells, the choice of genes and the channel enrichment used query "
            "cells like calibration cells, without their role."
        )
    method = _setting(config, "library_size.method", "total")
    sentences.append(f"The library size of a cell was {LIBRARY_SIZES.get(method, method)}.")
    return " ".join(sentences)


LIKELIHOODS = {
    "nb": "a negative binomial likelihood (variance mu + mu^2/theta, theta {dispersion})",
    "zinb": "a zero-inflated negative binomial likelihood (variance mu + mu^2/theta before "
    "inflation, theta {dispersion}, the share of lost counts a function of the latent position)",
    "poisson": "a Poisson likelihood",
    "gaussian": "a Gaussian likelihood of log(1 + counts at a common depth) with a variance "
    "{variance}",
}
DISPERSIONS = {
    "gene": "a gene",
    "gene_batch": "a gene and batch",
    "gene_cell": "a gene times a function of the latent position",
}
DECODERS = {
    "softmax": "shares of the library by a softmax",
    "free": "a free rate of each gene",
}
PRIORS = {
    "normal": "a standard normal prior",
    "mixture": "a prior of {n} learned Gaussians (Dilokthanakul et al. 2016)",
    "vamp": "a VampPrior of {n} pseudo-cells (Tomczak & Welling 2018)",
}
SKIPS = {
    "plain": "The decoder was also given the encoder's hidden units (a plain skip connection).",
    "film": "The decoder was also given the encoder's hidden units times a linear function of the "
    "latent position (FiLM, Perez et al. 2018).",
}
WARM_UPS = {
    "linear": "rose linearly to {beta:g} over {steps} optimiser steps",
    "cosine": "rose along a cosine to {beta:g} over {steps} optimiser steps",
    "cyclical": "rose to {beta:g} in {cycles} cycles over {steps} optimiser steps (Fu et al. 2019)",
    "constant": "was {beta:g} from the start",
}


def _generative_model(train: dict, likelihood: str) -> str:
    """What the counts are taken to be, and the network."""
    variance = train["gaussian_variance"]
    scatter = LIKELIHOODS[likelihood].format(
        dispersion=DISPERSIONS[train["dispersion"]],
        variance="learned a gene" if variance is None else f"fixed at {variance:g}",
    )
    size = {
        "observed": "a log offset of the library size",
        "latent": "a latent library size, log-normal in each batch",
    }[train["library_size"]]
    mean = f"{size}, {DECODERS[train['decoder']]}, " if likelihood != "gaussian" else ""
    prior = PRIORS[train["prior"]].format(n=train["prior_components"])
    hidden = f"hidden layer{'s' * (train['n_layers'] > 1)} of {train['n_hidden']} units"
    layers = f"{train['n_layers']} {hidden}" if train["n_layers"] else "linear maps"
    sentences = [
        "Counts were modelled by a variational autoencoder (Kingma & Welling 2014; Lopez et al. "
        f"2018) with {scatter}, {mean}and {prior}"
        f" ({train['n_latent']} latent dimensions; {layers} in encoder and decoder, normalization: "
        f"{train['normalization']}, dropout {train['dropout']:g})."
    ]
    if train["skip"] in SKIPS:
        sentences.append(SKIPS[train["skip"]])
    told = [*train["covariates"], *train["continuous_covariates"]]
    if told:
        who = "Encoder and decoder were" if train["encode_covariates"] else "The decoder was"
        sentences.append(f"{who} given covariates: {', '.join(told)}.")
    return " ".join(sentences)


def _model(config: dict, stages: dict[str, dict]) -> str:
    found, train, cut = stages["train"], config["train"], stages["prune"]
    likelihood = found["architecture"]["likelihood"]
    chosen, sentences = stages.get("likelihood"), [_generative_model(train, likelihood)]
    if chosen:
        sentences.append(
            "The likelihood was chosen among negative binomial, zero-inflated negative binomial "
            f"and Poisson by the importance-weighted evidence ({chosen['samples']} samples, Burda "
            f"et al. 2016) of {chosen['n_cells']} held-out cells. {chosen['zeros']}"
        )
    warm_up = WARM_UPS[train["kl_warmup"]].format(
        beta=train["beta"], steps=found["warmup_ends_at_step"], cycles=train["kl_cycles"]
    )
    free = f", {train['free_bits']:g} nats a dimension free" if train["free_bits"] else ""
    sentences.append(
        f"The weight of the KL term {warm_up}{free}; training on {found['n_train']} cells was "
        f"ended by {found['stopped_by']}, and the model of step {found['best_step']} with the "
        f"highest ELBO on {found['n_validation']} held-out cells was kept. Latent dimensions "
        "without evidence (KL to the prior, held-out ELBO lost when the dimension is set to its "
        f"mean; min_kl = {cut['min_kl']:g}, min_ablation = {cut['min_ablation']:g} nats a cell) "
        f"were cut, which left {cut['n_kept']}, and the model was fine-tuned. "
        f"{counted(found['signal_axes'], 'singular value')} of the training cells exceeded the "
        "optimal hard threshold (Gavish & Donoho 2014)."
    )
    if "rate_distortion" in stages:
        betas = ", ".join(f"{beta:g}" for beta in stages["rate_distortion"]["betas"])
        sentences.append(
            f"Rate and distortion (Alemi et al. 2018) were traced over models with beta = {betas}."
        )
    measured = stages["evidence"]
    sentences.append(
        f"Evidence was estimated with {measured['samples']} importance samples a cell (Burda et "
        f"al. 2016), the amortization gap (Cremer et al. 2018) with {measured['refine_steps']} "
        "gradient steps on each cell's posterior (Kim et al. 2018)"
        + ("; scores stand on these refined posteriors." if measured["for_scores"] else ".")
    )
    if "stability" in stages:
        sentences.append(
            f"Training, pruning and scoring were repeated with {len(stages['stability']['seeds'])} "
            "seeds in all, and compared by canonical correlations of the latent spaces, shared "
            "neighbours and ranks of the scores."
        )
    return " ".join(sentences)


CALIBRATED = {
    "marginal": "a conformal p-value against {n} calibration cells that the model had not seen",
    "conditional": "a conformal p-value against {n} calibration cells that the model had not seen, "
    "valid given these cells with probability {sure:g} (generalized Simes inequality)",
}


def _anomalies(config: dict, stages: dict[str, dict]) -> str:
    found, settings = stages["anomaly"], config["anomaly"]
    names = ", ".join(found["channels"]).replace("_", " ")
    scores = f"{len(found['channels'])} scores ({names})"
    if found["is_ranking"]:
        return (
            f"There was no separate reference. Each cell got {scores} from a model trained "
            f"without its fold ({settings['folds']} folds), each score standardised against log "
            "library size; the scores of a kind were averaged, turned into p-values by an "
            "exponential tail beyond their 90 % quantile and combined (Liu & Xie 2020). Cells "
            f"with a Benjamini-Hochberg adjusted p-value up to {found['alpha']} were marked: "
            f"{found['n_anomalies']} of "
            f"{found['n_query']}. This is a ranking without a guarantee of its error rate."
        )
    calibrated = CALIBRATED[found["guarantee"]].format(
        n=found["n_calibration"], sure=1 - settings["conditional_delta"]
    )
    sentences = [
        f"Each query cell got {scores}. Enrichment is the log-odds of a classifier of held-out "
        "against training cells on principal components of log counts (Marandon et al. 2024), "
        "which does not know calibration from query cells. Each score was standardised against "
        "log library size on validation and calibration cells; scores of a kind were averaged, "
        "the kinds ranked among the calibration cells and combined with half of the weight on "
        "enrichment (Liu & Xie 2020), and the combined score, less its line in log library size, "
        f"turned into {calibrated} (Bates et al. 2023)."
    ]
    if found["n_trimmed"]:
        sentences.append(f"{found['n_trimmed']} calibration cells were left out as contamination.")
    if found["calibrated_by_batch"]:
        sentences.append(
            "Cells of the batches "
            f"{', '.join(found['calibrated_by_batch'])} were ranked among their own calibration "
            "cells."
        )
    sentences.append(
        f"Cells were flagged at a false discovery rate of {found['alpha']} (Benjamini & Hochberg "
        f"1995) across {found['n_query']} query cells: {found['n_anomalies']} were."
    )
    return " ".join(sentences)


def _genes(stages: dict[str, dict]) -> str:
    found = stages["genes"]
    one = found["observations"].removesuffix("s")
    theta = (
        " the dispersion was estimated again on held-out samples, shrunk over genes, and p-values "
        "averaged over its posterior;"
        if found["median_theta_ratio"] is not None
        else ""
    )
    normal = (
        f" On held-out normal {found['observations']}, p <= 0.001 occurred "
        f"{found['null_ratio']['0.001']:.2g} times as often as nominal."
        if found["null_ratio"]
        else ""
    )
    return (
        f"Each gene of a judged {one} was tested against its expected count, two-sided (2 min(1/2, "
        f"P(X <= x), P(X >= x)), Brechtmann et al. 2018);{theta} q-values are those of Benjamini & "
        f"Yekutieli (2001) within the {one}, at {found['alpha']:g}; z-scores are normal quantiles "
        f"of p.{normal}"
    )


def _reasons(stages: dict[str, dict]) -> str:
    found, doublets = stages["patterns"], stages.get("doublets")
    text = (
        f"Flagged cells were explained against {counted(found['n_groups'], 'group')} of reference "
        f"cells ({found['groups_named_by']}). For each cell and gene, Pearson residuals from the "
        "model's expectation and from that of a normal cell of the nearest group were averaged; "
        "their principal axes above sign-flipped noise (Hong et al. 2020) were kept, and cells "
        "beyond the 99 % quantile of held-out normal cells on these axes grouped by average "
        "linkage of cosines. Marker genes of a pattern: its summed counts against a negative "
        "binomial of the summed expectation, Benjamini-Hochberg over genes; the cells were chosen "
        "by their residuals, so these p-values rank genes. Technical causes were guessed from "
        "depth, mitochondrial share, dissociation genes (van den Brink et al. 2017)"
        f"{', doublet probability' if doublets else ''} and a fit of ambient counts."
    )
    if not doublets:
        return text
    return (
        f"{text} Doublets were simulated from "
        f"{doublets['n_reference']} training and validation cells ({doublets['n_simulated']}, half "
        "of them at the depth of a single cell); a logistic regression in latent space, "
        "calibrated on held-out scores (Platt 1999), gave the doublet probability at a rate of "
        f"{doublets['rate']:g}."
    )


def _check(stages: dict[str, dict]) -> str:
    found = stages.get("check")
    if not found or found["mean_power"] is None:
        return ""
    group = found["held_out_group"] or {"group": None}
    further = ", a group of cells held out of a second training" if group["group"] else ""
    return (
        "As a check, anomalies of known kind and strength (single genes, gene programs, doublets, "
        f"ambient counts{further}) were put into "
        f"held-out normal cells: mean power {found['mean_power']:.2f}, mean realised false "
        f"discovery proportion {found['mean_fdp']:.2f} at a nominal {found['alpha']:g}."
    )


def methods_paragraphs(config: dict, summaries: list[dict]) -> list[str]:
    """A methods section with the settings and numbers of this run.

    ``summaries``: of all stages, with their ``stage`` and ``sample``; the anomaly stage's must be
    among them.
    """
    stages = {summary["stage"]: summary for summary in summaries if not summary["sample"]}
    return [
        _preprocessing(config, stages),
        _model(config, stages),
        _anomalies(config, stages),
        _genes(stages),
        _reasons(stages),
        *filter(None, [_check(stages)]),
        "The UMAP (McInnes et al. 2018) serves for looking only. The pipeline, anomics, runs on "
        f"Snakemake (Mölder et al. 2021); the seed was {_setting(config, 'seed')}.",
    ]


def write_methods(config: dict, summaries: list[dict]) -> tuple[str, str]:
    """The methods section with its list of references in Markdown, and these as BibTeX."""
    text = "\n\n".join(methods_paragraphs(config, summaries))
    cited = cited_in(text)
    listed = "\n".join(f"- {reference}" for reference in cited)
    shown = ACTS.sub(r"\\\g<0>", text)
    page = f"# Methods\n\n{shown}\n\n## References\n\n{listed}\n"
    return page, "\n".join(reference.bibtex() for reference in cited)
