"""The channels of evidence of each cell: what it shows by itself, and the company it keeps."""

import numpy as np
from sklearn.mixture import GaussianMixture

from enrichment import enrichment
from gene_sets import GENE_SETS
from held_cells import Cells
from latent_place import fit_mixture, neighbour_distance
from omics_vae import anomaly
from omics_vae.inference import decoded
from omics_vae.model import VAE

# Channel: its kind, and what it looks at. Channels of a kind are averaged before the combination:
# alike as they are, each would otherwise have a vote of its own.
CHANNELS = {
    "program": ("residuals", "mean -log p of the most surprising genes"),
    "single_gene": ("residuals", "-log p of the most surprising gene"),
    "profile": ("residuals", "deviance from the expected counts over all genes of the model"),
    "latent_density": ("place", "-log density of the latent position in the reference"),
    "latent_distance": ("place", "distance to the nearest reference cells in latent space"),
    "enrichment": ("group", "log-odds of held-out against training cells at its place"),
    "unseen_genes": ("unseen", "counts in genes that the reference hardly shows"),
    "mitochondrial": ("quality", "log share of counts in mitochondrial genes"),
}
KINDS = {name: kind for name, (kind, _) in CHANNELS.items()}
LEAST_SHARE = 0.005  # added to the mitochondrial share, so that a cell without one is not far off


def raw_channels(
    model: VAE,
    train: Cells,
    held_out: Cells,
    settings: dict,
    seed: int,
    device,
    group: bool = True,
    mixture: GaussianMixture | None = None,
    residuals: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Every channel of the ``held_out`` cells, before the standardisation by depth.

    ``held_out``: validation cells, by which the latent mixture is chosen, and those to be scored;
    ``group``: with the channel enrichment. Where they are known already: ``mixture``, of the latent
    places of ``train``, and ``residuals``, of :func:`residual_scores`.
    """
    if mixture is None:
        mixture = fit_mixture(train.latent, held_out.of("validation").latent, seed)
    if residuals is None:
        residuals = residual_scores(model, held_out, settings["program_genes"], device)
    optional = {
        "enrichment": enrichment(train, held_out, seed) if group else None,
        "unseen_genes": anomaly.unseen_genes_channel(
            held_out.counts,
            held_out.size,
            anomaly.pooled_rates(train.counts, train.size),
            float(np.median(train.size)),
        ),
        "mitochondrial": mitochondrial_channel(held_out),
    }
    return {
        **residuals,
        "latent_density": -mixture.score_samples(held_out.latent),
        "latent_distance": neighbour_distance(train.latent, held_out.latent, seed),
        **{name: values for name, values in optional.items() if values is not None},
    }


def residual_scores(model: VAE, cells: Cells, program_genes: int, device) -> dict[str, np.ndarray]:
    """The channels of kind residuals (cells,): how badly each cell fits by itself."""
    parts: dict[str, list] = {}
    for _, x, expected in decoded(model, cells.data, cells.posterior, device):
        for name, values in anomaly.residual_channels(x, expected, program_genes).items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def mitochondrial_channel(cells: Cells) -> np.ndarray | None:
    """log(share of counts in mitochondrial genes + 0.005) (cells,); None without such genes."""
    is_mitochondrial = [bool(GENE_SETS["pct_mito"].match(gene)) for gene in cells.genes]
    if not any(is_mitochondrial):
        return None
    counts = cells.counts.of_genes(np.flatnonzero(is_mitochondrial)).sum(1)
    return np.log(counts / cells.size + LEAST_SHARE)


def standardise(
    channels: dict[str, np.ndarray], log_depth: np.ndarray, normal: np.ndarray
) -> dict[str, np.ndarray]:
    """Each channel in SDs above what held-out normal cells of the same depth show."""
    result = {}
    for name, score in channels.items():
        standard = anomaly.DepthStandard.fit(score[normal], log_depth[normal])
        result[name] = standard.apply(score, log_depth)
    return result
