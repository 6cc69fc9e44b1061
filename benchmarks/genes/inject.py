"""Inject outliers into simulated bulk counts and see which method's p-values find them."""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import yaml
from sklearn.metrics import average_precision_score

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))

from design import Design
from gene_tests import HeldOutTheta, log_two_sided_p
from make_bulk_example import outlier_counts, simulate_cohort, size_factors
from model_inputs import ModelInputs
from omics_vae.data import CountData
from omics_vae.inference import decoded, embed
from omics_vae.likelihoods import NegativeBinomial
from omics_vae.pruning import cut_model, gather_evidence
from omics_vae.training import train
from train_vae import build_model, training_plan

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FOLDS, FREQUENCY = 5, 1e-2
COMPONENTS = (4, 6, 8, 10, 12, 16)
VALIDATION = 20  # every 20th training sample tells when to stop, as in the bulk example


def configured() -> tuple[dict, dict]:
    """Sections train and prune of config.yaml with what the bulk example changes."""
    default = yaml.safe_load((ROOT / "config.yaml").read_text())
    bulk = yaml.safe_load((ROOT / "workflow" / "example" / "bulk.yaml").read_text())
    return tuple(default[name] | bulk[name] for name in ("train", "prune"))


def inject(counts: np.ndarray, z: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of which a hundredth are z SDs up or down, and where (samples, genes)."""
    rng = np.random.default_rng([seed, round(10 * z)])
    at = rng.random(counts.shape) < FREQUENCY
    sign = rng.choice([-1.0, 1.0], counts.shape)
    return np.where(at, outlier_counts(counts, sign * z), counts), at


def by_mean(train_x, train_s, x, s) -> np.ndarray:
    """No correction: the gene's mean at the sample's size."""
    return s[:, None] * (train_x / train_s[:, None]).mean(0)


def by_components(train_x, train_s, x, s, k: int, rescale: bool) -> np.ndarray:
    """Reconstruction by k principal components of log((count + 1) / size), as OUTRIDER's PCA.

    ``rescale``: each gene then times the ratio of its observed to its expected training counts.
    """
    level = np.log((train_x + 1.0) / train_s[:, None])
    mean = level.mean(0)
    axes = np.linalg.svd(level - mean, full_matrices=False)[2][:k]

    def expected(counts, size):
        centred = np.log((counts + 1.0) / size[:, None]) - mean
        return size[:, None] * np.exp(mean + centred @ axes.T @ axes)

    ratio = 1.0
    if rescale:
        ratio = (train_x.sum(0) + 0.5) / (expected(train_x, train_s).sum(0) + 0.5)
    return expected(x, s) * ratio


def by_model(train_x, train_s, x, s, seed: int) -> np.ndarray:
    """This pipeline's model: trained, pruned and fine-tuned as the bulk example says."""
    settings, prune = configured()
    scale = np.median(train_x.sum(1))
    n_train = len(train_x)
    split = np.where(np.arange(n_train) % VALIDATION == 0, "validation", "train")
    split = np.append(split, np.full(len(x), "query"))
    counts = sp.csr_matrix(np.vstack([train_x, x]).astype(np.int32))
    inputs = ModelInputs(
        CountData(counts, np.log(np.append(train_s, s) * scale)),
        [f"G{g}" for g in range(x.shape[1])],
        pd.DataFrame({"split": split}),
    )
    parts = inputs.split("train"), inputs.split("validation")
    tuning = {
        **settings,
        "max_steps": prune["fine_tune_steps"],
        "learning_rate": prune["fine_tune_learning_rate"],
    }
    design = Design({}, {}, [])
    model = build_model(inputs, settings, design, seed)
    with tempfile.TemporaryDirectory() as folder:
        train(model, *parts, training_plan(settings, seed), CPU, Path(folder) / "trained")
        evidence = gather_evidence(model, parts[1], CPU)
        kept = evidence.keep(prune["min_kl"], prune["min_ablation"])
        model = cut_model(model, kept, evidence.centre)
        train(model, *parts, training_plan(tuning, seed), CPU, Path(folder) / "tuned")
    query = inputs.split("query")
    at = embed(model, query, CPU)
    return np.concatenate([nb.mean.numpy() for _, _, nb in decoded(model, query, at, CPU)])


def held_out(counts: np.ndarray, seed: int, expected) -> np.ndarray:
    """Expected counts of every sample by a fit that has not seen it (samples, genes)."""
    fold = np.random.default_rng(seed).permutation(len(counts)) % FOLDS
    size, result = size_factors(counts), np.empty(counts.shape)
    for k in range(FOLDS):
        ours = fold == k
        result[ours] = expected(counts[~ours], size[~ours], counts[ours], size[ours])
    return result


def auprc(counts: np.ndarray, expected: np.ndarray, at: np.ndarray) -> float:
    """Average precision of the p-values; theta a gene alike for all methods, from all samples."""
    mu = torch.from_numpy(np.log(np.maximum(expected, 1e-6)))
    nb = NegativeBinomial(mu, torch.zeros(1, counts.shape[1], dtype=torch.float64))
    x, theta = counts.astype(np.float64), None
    for _ in range(2):
        found = HeldOutTheta(counts.shape[1])
        found.add(x, nb, theta)
        theta = found.posterior()
    log_p = log_two_sided_p(x, nb, theta)
    return float(average_precision_score(at.ravel(), -log_p.ravel()))


def compare(n_samples: int, n_genes: int, z: float, seed: int) -> list[dict]:
    """A row a method; principal components with the number that does best, chosen afterwards."""
    cohort = simulate_cohort(n_samples, n_genes, seed)
    counts, at = inject(cohort.counts, z, seed)
    found = {"true mean": (cohort.mu, ""), "no correction": (held_out(counts, seed, by_mean), "")}
    best = {}
    for rescale in (False, True):
        for k in COMPONENTS:
            mu = held_out(
                counts,
                seed,
                lambda *parts, k=k, rescale=rescale: by_components(*parts, k, rescale),
            )
            name, value = "PCA, rescaled" if rescale else "PCA", auprc(counts, mu, at)
            if name not in best or value > best[name][0]:
                best[name] = (value, k)
    model = held_out(counts, seed, lambda *parts: by_model(*parts, seed))
    found["anomics"] = (model, "")
    rows = [(name, auprc(counts, mu, at), k) for name, (mu, k) in found.items()]
    rows += [(name, value, k) for name, (value, k) in best.items()]
    return [
        {"z": z, "seed": seed, "method": name, "auprc": value, "components": k}
        for name, value, k in rows
    ]


def main() -> None:
    """All combinations; a line each as it is ready, and the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of injected.tsv")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--z", type=float, nargs="+", default=[2, 3, 4, 6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in options.seeds:
        for z in options.z:
            found = compare(options.samples, options.genes, z, seed)
            print(*found, sep="\n", flush=True)
            rows += found
            table = pd.DataFrame(rows)
            table.to_csv(options.out / "injected.tsv", sep="\t", index=False)
    mean = table.pivot_table(index="method", columns="z", values="auprc")
    (options.out / "injected.md").write_text(mean.round(3).to_markdown() + "\n")
    print(mean.round(3).to_string())


if __name__ == "__main__":
    main()
