"""Put known anomalies into normal cells that no model has seen, and see what is found."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.stats import false_discovery_control
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture

from detection import detect, spearman
from enrichment import log_profiles
from evidence_channels import residual_scores
from held_cells import SCORING_DEVICE, Cells, join_cells, read_cells
from injection import GROUP, Kind, as_split, injected, possible_kinds
from job import job, read_json, write_json, write_parquet, write_tsv
from latent_place import fit_mixture
from omics_vae.anomaly import conformal_p
from omics_vae.model import VAE, load_model
from stored_counts import counts_memory

INJECTED_SHARE = 0.1  # of the query of a check,
LEAST_INJECTED = 15  # but so many where they are at most a quarter of it: below, nothing is flagged
REPEATS = 3  # draws of cells, genes and anomalies
# A check need not see all cells of an atlas.
MOST_TRAINING, MOST_NORMAL = 5000, 2000
LEAST_NORMAL = 40  # of which half calibrate; fewer say nothing
PCA_COMPONENTS = 15
METHODS = {
    "anomics": "this pipeline",
    "total count": "distance of the log total count from the median of the training cells",
    "PCA error": "what principal components of the training cells leave over",
}
FIT = ("weights", "description", "latent")
MEASURES = ["auroc", "auprc", "power", "fdp", "fpr", "spearman_depth"]
COLUMNS = ["repeat", "kind", "strength", "value", "n_injected", "n_normal", "method", *MEASURES]


@dataclass(frozen=True)
class Draw:
    """The cells of one draw, by which every kind of anomaly is tried, and what is known of them."""

    train: Cells
    held_out: Cells  # validation, calibration and query, all of them normal
    mixture: GaussianMixture  # of the latent places of ``train``
    residuals: dict[str, np.ndarray]  # of ``held_out``
    components: TruncatedSVD  # of the profiles of ``train``
    rng: np.random.Generator  # as the draw left it

    @classmethod
    def of(
        cls, model: VAE, cells: Cells, normal: Cells, program_genes: int, seed: int, device
    ) -> "Draw":
        """Some of the training and validation cells, and halves of some of the ``normal`` ones.

        ``normal``: cells that the model has not seen, neither anomalies nor of a held-out group.
        """
        rng = np.random.default_rng(seed)
        train, validation = (
            some(cells.of(name), most, rng)
            for name, most in (("train", MOST_TRAINING), ("validation", MOST_NORMAL))
        )
        order = rng.permutation(len(normal))[:MOST_NORMAL]
        half = len(order) // 2
        calibration, query = (
            as_split(normal.take(part), name)
            for part, name in ((order[:half], "calibration"), (order[half:], "query"))
        )
        train, *parts = (
            encoded(part, model, device) for part in (train, validation, calibration, query)
        )
        held_out = join_cells(parts)
        return cls(
            train,
            held_out,
            fit_mixture(train.latent, parts[0].latent, seed),
            residual_scores(model, held_out, program_genes, device),
            components_of(train),
            rng,
        )


def encoded(cells: Cells, model: VAE, device) -> Cells:
    """The cells in memory, embedded by the encoder alone, as the injected cells are.

    Also where the latent file holds refined posteriors.
    """
    cells = cells.in_memory()
    return cells.with_counts(cells.counts, model, device)


def profiles_of(cells: Cells, train: Cells) -> sp.csr_matrix:
    """Log profiles in the model's genes at the depth of the training cells (cells, genes)."""
    counts = cells.counts.of_genes(cells.in_model)[:]
    return log_profiles(counts, cells.size, float(np.median(train.size)))


def components_of(train: Cells) -> TruncatedSVD:
    """Principal components of the profiles of the training cells."""
    profiles = profiles_of(train, train)
    return TruncatedSVD(min(PCA_COMPONENTS, profiles.shape[1] - 1), random_state=0).fit(profiles)


def baselines(train: Cells, components: TruncatedSVD, held_out: Cells) -> dict[str, np.ndarray]:
    """Scores that need no model, of the held-out cells; larger is odder (cells,)."""
    log_total = [np.log(cells.counts.sum(1)) for cells in (train, held_out)]
    seen = profiles_of(held_out, train)
    # |x - PCA(x)|^2 without a dense matrix: the components are orthonormal.
    left = np.asarray(seen.multiply(seen).sum(1)).ravel()
    left -= np.square(components.transform(seen)).sum(1)
    return {
        "total count": np.abs(log_total[1] - np.median(log_total[0])),
        "PCA error": np.maximum(left, 0.0),
    }


def measures(
    truth: np.ndarray, score: np.ndarray, p: np.ndarray, flagged: np.ndarray, size: np.ndarray
) -> dict:
    """What a method found of the anomalies ``truth`` (query cells,) bool."""
    normal = ~truth
    return {
        "auroc": roc_auc_score(truth, score),
        "auprc": average_precision_score(truth, score),
        "power": float(flagged[truth].mean()),
        "fdp": float((flagged & normal).sum() / max(1, flagged.sum())),
        "fpr": float((p[normal] <= 0.05).mean()),
        "spearman_depth": spearman(score[normal], size[normal]),
    }


def judge_all(
    model: VAE,
    draw: Draw,
    held_out: Cells,
    residuals: dict[str, np.ndarray],
    truth: np.ndarray,
    settings: dict,
    seed: int,
    device,
) -> list[dict]:
    """A row a method; ``truth`` (held-out cells,): which are anomalies."""
    split = held_out.split
    query, calibration = split == "query", split == "calibration"
    known = draw.mixture, residuals
    found = detect(model, draw.train, held_out, settings, seed, device, *known)
    ours = found.loc[held_out.obs.index[query]]
    verdicts = {"anomics": (ours["score"], ours["p_value"], ours["is_anomaly"])}
    for name, score in baselines(draw.train, draw.components, held_out).items():
        p = conformal_p(score[query], score[calibration])
        flagged = false_discovery_control(p, method="bh") <= settings["alpha"]
        verdicts[name] = (score[query], p, flagged)
    return [
        {"method": name} | measures(truth[query], *map(np.asarray, verdict), held_out.size[query])
        for name, verdict in verdicts.items()
    ]


def check(
    model: VAE, cells: Cells, draw: Draw, kind: Kind, settings: dict, seed: int, device
) -> list[dict]:
    """One draw of one kind of anomaly: a row a method."""
    # Each kind from the same state: its anomalies do not depend on the kinds before it.
    rng, held_out = deepcopy(draw.rng), draw.held_out
    query = np.flatnonzero(held_out.split == "query")
    n = max(round(INJECTED_SHARE * len(query)), min(LEAST_INJECTED, len(query) // 4))
    if kind.make is None:
        odd = as_split(encoded(some(cells.of("held"), n, rng), model, device), "query")
        place = np.arange(len(held_out) + len(odd))
    else:
        of_query = np.sort(rng.choice(len(query), n, replace=False))
        odd = injected(kind, held_out.take(query), of_query, model, device, rng)
        place = np.arange(len(held_out))
        place[query[of_query]] = len(held_out) + np.arange(len(odd))
    # What is normal stays what it was, and what is known of it.
    both = join_cells([held_out, odd]).take(place)
    of_odd = residual_scores(model, odd, settings["program_genes"], device)
    residuals = {
        name: np.concatenate([values, of_odd[name]])[place]
        for name, values in draw.residuals.items()
    }
    truth = place >= len(held_out)
    rows = judge_all(model, draw, both, residuals, truth, settings, seed, device)
    n_normal = int((both.split == "query").sum()) - len(odd)
    counts = {"n_injected": len(odd), "n_normal": n_normal}
    named = {"kind": kind.kind, "strength": kind.strength, "value": kind.value}
    return [named | counts | row for row in rows]


def some(cells: Cells, at_most: int, rng: np.random.Generator) -> Cells:
    """At most so many of the cells, in their order."""
    if len(cells) <= at_most:
        return cells
    return cells.take(np.sort(rng.choice(len(cells), at_most, replace=False)))


def average(draws: pd.DataFrame) -> pd.DataFrame:
    """Mean over the draws of each kind, strength and method; and the spread of the AUROC."""
    keys = ["kind", "strength", "method"]
    grouped = draws.groupby(keys, sort=False)
    table = grouped[["n_injected", "n_normal", *MEASURES]].mean().reset_index()
    table["auroc_sd"] = grouped["auroc"].std(ddof=1).to_numpy()
    return table.astype({"n_injected": int, "n_normal": int})


def mean_or_none(values: pd.Series) -> float | None:
    """The mean; None of no value (JSON has no NaN)."""
    return float(values.mean()) if len(values) else None


def check_warnings(table: pd.DataFrame, alpha: float, n_unseen: int) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    if table.empty:
        return [
            f"The run could not be checked on injected anomalies: {n_unseen} cells that the model "
            f"has not seen, {LEAST_NORMAL} are needed; bring more reference cells or raise "
            "preprocess.split.calibration (without a query: fewer anomaly.folds)."
        ]
    ours = table[table["method"] == "anomics"]
    found = []
    fdp = float(ours["fdp"].mean())
    # Over so many draws of few anomalies the mean still wanders by some percent.
    if fdp > 1.5 * alpha:
        found.append(
            f"On injected anomalies {100 * fdp:.0f} % of what was flagged was normal, at a nominal "
            f"{100 * alpha:.0f} %; bring more reference cells, or set anomaly.guarantee: "
            "conditional."
        )
    unseen = ours[(ours["kind"] == "group") & (ours["auroc"] < 0.8)]
    if len(unseen):
        found.append(
            "A group of reference cells that was held out of the training ranks only "
            f"{unseen['auroc'].iloc[0]:.2f} (AUROC) against the others, so a new cell type like it "
            "would be missed; raise preprocess.select_features.n_features or bring more cells."
        )
    return found


def one(files: str | list[str]) -> str:
    """The path of an input that is a file or a list of one."""
    return files if isinstance(files, str) else files[0]


if __name__ == "__main__":
    with job(snakemake) as log:
        params, files = snakemake.params, snakemake.input
        torch.set_num_threads(snakemake.threads)
        device, memory = SCORING_DEVICE, counts_memory(snakemake)

        def fit(name: str, held: np.ndarray | None = None) -> tuple[VAE, Cells]:
            # An input that only some runs have is a list of one.
            path = {what: one(files[f"{name}_{what}"]) for what in FIT}
            model, content = load_model(path["weights"], path["description"])
            paths = files.counts, files.library_size, path["latent"]
            return model, read_cells(*paths, content, memory, params.fold, held)

        model, cells = fit("fit")
        unseen = cells.of("query" if params.fold else "calibration")
        kinds = possible_kinds(params.observations, len(cells.in_model))
        tried = [(model, cells, unseen, kinds)]
        held = pd.read_parquet(one(files.group))["cell_id"].to_numpy() if files.group else None
        if held is not None and len(held):
            other, known = fit("group", held)
            tried.append((other, known, known.of("calibration"), [GROUP]))
        # A run on few cells is none the worse for it: the report says that it was not checked.
        tried = [those for those in tried if len(those[2]) >= LEAST_NORMAL]
        rows, n_genes = [], params.settings["program_genes"]
        for by, of, normal, these in tried:
            for repeat in range(REPEATS):
                seed = params.seed + repeat
                draw = Draw.of(by, of, normal, n_genes, seed, device)
                for kind in these:
                    drawn = check(by, of, draw, kind, params.settings, seed, device)
                    rows += [{"repeat": repeat + 1} | row for row in drawn]
        draws = pd.DataFrame(rows, columns=COLUMNS)
        table = average(draws)
        ours = table[table["method"] == "anomics"]
        summary = {
            "alpha": params.settings["alpha"],
            "repeats": REPEATS,
            "injected_share": INJECTED_SHARE,
            "n_normal": len(unseen),
            **{f"mean_{name}": mean_or_none(ours[name]) for name in ("power", "fdp", "fpr")},
            "held_out_group": read_json(one(files.group_summary)) if files.group_summary else None,
            "methods": METHODS,
        }
        warnings = check_warnings(table, params.settings["alpha"], len(unseen))
        write_parquet(draws, snakemake.output.draws)
        write_tsv(table, snakemake.output.table)
        write_json(summary | {"warnings": warnings}, snakemake.output.summary)
        n_kinds = sum(len(these) for *_, these in tried)
        log.info("check_injected: %d kinds of anomaly, %d draws", n_kinds, REPEATS)
