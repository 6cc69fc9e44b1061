"""The rule explain_anomalies: patterns, their markers, nearest references, technical causes."""

import json
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import explain_anomalies
from held_cells import read_cells, some_of
from job import read_json
from model_jobs import by_models, embed, train, with_obs
from omics_vae.counts import Counts
from omics_vae.model import load_model
from pattern_tables import pattern_table, reason_warnings, size_table
from patterns import (
    GeneSums,
    assign,
    by_size,
    group_by_direction,
    label,
    marker_genes,
    signal_axes,
    signed,
    sum_genes,
)
from reference_groups import label_column, reference_groups
from reference_profile import Comparison, Reference, ReferenceProfile
from run_script import run_script
from simulated_counts import CPU, small_run
from technical_causes import (
    ambient_profiles,
    causes_of,
    fit_ambient,
    in_words,
    of_pattern,
    parents_of,
    robust_z,
)

SPIKED = [f"cell{i}" for i in range(408, 420)]
OTHERS = [f"cell{i}" for i in range(360, 366)]
OUTPUTS = {
    "cells_tsv": "anomaly.tsv",
    "cells": "cells.parquet",
    "patterns": "patterns.tsv",
    "markers": "markers.tsv",
    "residuals": "residuals.parquet",
    "sizes": "sizes.tsv",
    "groups": "groups.tsv",
    "summary": "summary.json",
}
READ = [
    *("cell_id", "sample", "score", "p_value", "q_value", "is_anomaly", "pattern"),
    *("nearest_reference", "doublet_probability", "technical_cause", "genes"),
]


# Patterns


def rays(angles, n, seed, jitter=0.1):
    """n cells on each ray of a plane, 3 to 30 from 0, and n within 1 of it."""
    rng = np.random.default_rng(seed)
    angle = np.repeat(angles, n) + rng.normal(0, jitter, n * len(angles))
    length = rng.uniform(3, 30, len(angle))
    rest = rng.uniform(-0.7, 0.7, (n, 2))
    return np.vstack([length[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]), rest])


def test_cells_on_a_ray_are_one_pattern_however_far_out():
    pattern = group_by_direction(rays([0.0, 2.0], 40, seed=1), limit=1.0)
    assert set(pattern[:40]) == {0} or set(pattern[:40]) == {1}
    assert len(set(pattern[:40])) == len(set(pattern[40:80])) == 1
    assert pattern[0] != pattern[40]
    assert (pattern[80:] == -1).all()


def test_patterns_are_numbered_by_size_and_two_cells_are_none():
    place = np.vstack([rays([0.0], 5, 1)[:5], rays([2.0], 9, 2)[:9], rays([4.0], 2, 3)[:2]])
    pattern = group_by_direction(place, limit=1.0)
    np.testing.assert_array_equal(pattern, [1] * 5 + [0] * 9 + [-1] * 2)


def test_opposite_residuals_are_two_patterns_on_one_axis():
    place = np.array([[3.0], [5.0], [9.0], [-3.0], [-4.0], [-8.0], [-2.0], [0.5]])
    pattern = group_by_direction(place, limit=1.0)
    np.testing.assert_array_equal(pattern, [1, 1, 1, 0, 0, 0, 0, -1])


def test_further_cells_join_the_pattern_that_they_point_along():
    place = rays([0.0, 2.0], 60, seed=3)
    defining, others = np.arange(0, 180, 2), np.arange(1, 180, 2)
    found = group_by_direction(place[defining], 1.0)
    everyone = group_by_direction(place, 1.0)
    joined = assign(place[others], place[defining], found, 1.0)
    pairs = set(zip(everyone[others], joined, strict=True))
    assert len(pairs) == 3  # two patterns and none, each always the same
    assert (-1, -1) in pairs
    away = assign(np.array([[-20.0, 0.0]]), place[defining], found, 1.0)
    assert away[0] == -1


def test_patterns_are_renumbered_when_cells_joined_them():
    joined = np.repeat([0, 1, 2, -1], [4, 9, 2, 20])
    np.testing.assert_array_equal(by_size(joined), np.repeat([1, 0, -1, -1], [4, 9, 2, 20]))
    np.testing.assert_array_equal(by_size(np.full(3, -1)), -1)


def test_axes_are_as_many_as_signals():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((60, 400))
    signal = np.zeros((60, 400))
    signal[:20, :15] = 3.0
    signal[20:40, 15:30] = 3.0
    assert signal_axes(noise, 1).axes.shape[1] == 1  # never none
    axes = signal_axes(noise + signal, 1)
    assert axes.axes.shape[1] == 2
    weight = np.square(axes.axes).sum(1)
    assert weight[np.isin(axes.genes, np.arange(30))].sum() > 0.85 * weight.sum()


# Markers


def compared(counts, reference):
    """One chunk of a comparison in which the model expects what the reference does."""
    residual = np.clip((counts - reference) / np.sqrt(reference), -10, 10)
    n = np.zeros((len(counts), 0))
    return [
        Comparison(
            slice(0, len(counts)), counts, reference, reference, n, residual, lambda: residual
        )
    ]


def markers_of(counts, reference, seen=1e6):
    nearest = np.zeros(len(counts), dtype=int)
    sums = sum_genes(compared(counts, reference), nearest, nearest, lambda mean: mean)[0]
    genes = pd.Index([f"G{g}" for g in range(counts.shape[1])])
    return marker_genes(sums, np.full((1, counts.shape[1]), seen), genes)


def test_normal_cells_have_no_markers_and_a_planted_gene_is_one():
    rng = np.random.default_rng(1)
    reference = np.tile(rng.uniform(0.1, 5, 3000), (25, 1))
    counts = rng.poisson(reference).astype(float)
    assert len(markers_of(counts, reference)) == 0
    reference[:, :2] = 2.0
    counts[:, 0] = rng.poisson(8.0, 25)
    counts[:, 1] = 0
    found = markers_of(counts, reference).set_index("gene")
    assert set(found.index) == {"G0", "G1"}
    assert found.loc["G0", "direction"] == "up"
    assert found.loc["G0", "log2_fold_change"] == pytest.approx(2.0, abs=0.4)
    assert found.loc["G0", "mean_observed"] == counts[:, 0].mean()
    assert found.loc["G1", "direction"] == "down"
    assert found.loc["G1", "share"] == 1.0
    assert label(found.reset_index()) == "G0+ G1-"
    # Benjamini-Hochberg: the less sure of the two is second among 3000.
    second = found.loc[found["p_value"].idxmax()]
    assert second["q_value"] / second["p_value"] == pytest.approx(3000 / 2)


@pytest.mark.parametrize("cells", [[3], [3, 11, 19]])
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_few_cells_full_of_a_gene_make_no_marker(cells, rate):
    rng = np.random.default_rng(1)
    reference = np.full((25, 50), 0.05)
    reference[:, 7] = rate
    counts = rng.poisson(reference).astype(float)
    counts[cells, 7] = 400 if len(cells) == 1 else 2
    assert "G7" not in set(markers_of(counts, reference)["gene"])


def test_a_rate_learned_from_two_counts_is_not_trusted_as_one_from_many():
    reference = np.full((25, 50), 0.1)
    counts = np.random.default_rng(2).poisson(reference).astype(float)
    counts[:, 4] = np.arange(25) % 2 == 0  # 13 of 25, five times as many
    assert "G4" in set(markers_of(counts, reference, seen=1e6)["gene"])
    assert "G4" not in set(markers_of(counts, reference, seen=0.0)["gene"])


def test_genes_are_written_with_their_signs():
    assert signed(["CD79A", "LYZ"], [3.0, -2.0]) == "CD79A+, LYZ-"


# Reference groups


def latents(n=60, groups=3, seed=0):
    rng = np.random.default_rng(seed)
    centre = 6.0 * np.eye(groups, 4)
    sizes = [n - 10 * k for k in range(groups)]
    code = np.repeat(np.arange(groups), sizes)
    return centre[code] + rng.normal(0, 0.5, (len(code), 4)), code


@pytest.mark.parametrize("name", ["cell_type", "CellType", "cell.type", "annotation", "leiden"])
def test_the_users_labels_name_the_groups(name):
    latent, code = latents()
    obs = pd.DataFrame({"sample": "S", name: np.array(["T", "B", "NK"])[code]})
    groups = reference_groups(latent, obs, 1)
    assert groups.source == name
    assert groups.names == ["B", "NK", "T"]
    found = np.array(groups.names)[groups.nearest(latent + 0.3)]
    np.testing.assert_array_equal(found, obs[name])


def test_without_labels_clusters_are_named_by_size():
    latent, code = latents()
    for obs in (pd.DataFrame({"sample": ["S"] * len(code)}), pd.DataFrame({"label": code * 0})):
        groups = reference_groups(latent, obs, 1)
        assert groups.source == "latent clusters"
        assert groups.names == ["R1", "R2", "R3"]
        np.testing.assert_array_equal(groups.code, code)  # the first is the largest


def test_cells_without_a_label_are_in_no_group():
    latent, code = latents()
    labels = pd.Series(np.array(["T", "B", "NK"])[code], dtype=object)
    labels[::7] = np.nan
    labels[1::7] = "Unassigned"
    obs = pd.DataFrame({"cell_type": pd.Categorical(labels)})
    groups = reference_groups(latent, obs, 1)
    assert groups.names == ["B", "NK", "T"]
    assert (groups.code[::7] == -1).all() and (groups.code[1::7] == -1).all()
    labels[np.arange(len(labels)) % 10 < 7] = ""
    assert label_column(pd.DataFrame({"cell_type": labels})) is None


# Technical causes


def test_z_is_against_the_same_group_and_at_least_as_far_as_matters():
    normal = np.r_[np.full(20, 2.0), np.linspace(8, 12, 21), 1.0]
    group = np.r_[np.zeros(20), np.ones(21), 2].astype(int)
    z, middle = robust_z(np.array([5.0, 5.0, np.nan]), np.array([0, 1, 0]), normal, group, 2.0)
    np.testing.assert_allclose(middle, [2.0, 10.0, 2.0])
    # A MAD of 0 counts as a third of 2; a MAD of 1 as 1.4826.
    np.testing.assert_allclose(z, [4.5, -5 / 1.4826, 0.0])
    _, middle = robust_z(np.array([5.0]), np.array([2]), normal, group, 2.0)
    assert middle[0] == np.median(normal)  # one normal cell is no group


def test_what_floats_in_a_sample_is_the_mean_of_its_cells_weighted_by_their_counts(small_blocks):
    rng = np.random.default_rng(0)
    counts, sample = rng.poisson(2.0, (50, 30)), rng.choice(["a", "b", "c"], 50, p=[0.6, 0.3, 0.1])
    counts[sample == "b", :5] *= 20
    found = ambient_profiles(Counts.of(counts), sample)
    assert set(found) == {"a", "b", "c", ""}
    for name, profile in found.items():
        total = counts[(sample == name) | (name == "")].sum(0)
        np.testing.assert_allclose(profile, total / total.sum(), atol=1e-4)
        assert profile.sum() == pytest.approx(1.0) and profile.min() > 0


def test_the_ambient_share_of_a_mixture_is_found():
    rng = np.random.default_rng(4)
    group, ambient = rng.dirichlet(np.full(300, 0.3) + 0.05, 2)
    shares = np.repeat([0.0, 0.3, 1.0], 40)
    p = (1 - shares)[:, None] * group + shares[:, None] * ambient
    counts = sp.csr_matrix(np.stack([rng.multinomial(3000, row) for row in p]))
    many = [np.repeat(profile[None], len(shares), 0) for profile in (group, ambient)]
    found, gain = fit_ambient(counts, *many)
    np.testing.assert_allclose(found, shares, atol=0.08)
    assert found[40:80].mean() == pytest.approx(0.3, abs=0.01)
    assert (gain >= -1e-9).all()
    assert gain[:40].max() < 10 < gain[40:].min()
    x = counts[50].toarray()[0]
    expected = x @ np.log(((1 - found[50]) * group + found[50] * ambient) / group)
    assert gain[50] == pytest.approx(expected)


HEALTHY = {
    **{"pattern": "P1", "doublet_probability": 0.1, "mito_z": 0.0, "stress_z": 0.0},
    **{"ambient_share": 0.0, "ambient_gain": 0.0, "ambient_rest": 2.0, "depth_z": 0.0},
}
AMBIENT = {"ambient_share": 0.6, "ambient_gain": 80.0, "ambient_rest": 0.4}


@pytest.mark.parametrize(
    ("changed", "causes"),
    [
        ({}, []),
        ({"doublet_probability": np.nan}, []),
        ({"mito_z": 5.0}, ["mitochondrial"]),
        ({"mito_z": -5.0}, []),
        ({"stress_z": 4.0}, ["dissociation stress"]),
        (AMBIENT, ["ambient"]),
        (AMBIENT | {"ambient_rest": 1.5}, []),  # a new type, nearer to the mixture than to a type
        (AMBIENT | {"ambient_share": 0.3}, []),  # as normal cells between two types
        (AMBIENT | {"ambient_gain": 5.0}, []),
        (AMBIENT | {"doublet_probability": 0.9}, ["doublet"]),
        ({"depth_z": -6.0}, []),  # a new type may be small
        ({"depth_z": -6.0, "pattern": ""}, ["shallow"]),
        ({"depth_z": 6.0, "pattern": ""}, ["deep"]),
        ({"doublet_probability": 0.5, "mito_z": 9.0}, ["doublet", "mitochondrial"]),
    ],
)
def test_causes(changed, causes):
    assert causes_of(HEALTHY | changed, usual_ambient=0.35) == causes


def test_a_pattern_has_the_causes_of_half_of_its_cells():
    causes, share = of_pattern([["mitochondrial"], ["mitochondrial", "ambient"], [], ["doublet"]])
    assert (causes, share) == (["mitochondrial"], 0.5)
    assert of_pattern([[], [], ["doublet"]]) == ([], 1 / 3)
    assert of_pattern([[], []]) == ([], 0.0)


def test_doublets_are_named_by_their_commonest_parents():
    likely = {"doublet_probability": 0.9, "parent_1": "T", "parent_2": "B"}
    turned = likely | {"parent_1": "B", "parent_2": "T"}
    other = likely | {"parent_2": "NK"}
    unlikely = [other | {"doublet_probability": 0.1}] * 5
    parents = parents_of([likely, turned, other, *unlikely])
    assert parents == ("B", "T")
    assert in_words(["doublet", "ambient"], parents) == "doublet of B and T; ambient"
    assert in_words(["doublet"], parents_of(unlikely)) == "doublet"
    assert in_words([], ()) == "none found"


# Tables


def reason_rows(pattern, sample="S1", donor="", cause=()):
    numbers = dict.fromkeys(("distance", "doublet_probability", *explain_anomalies.EVIDENCE), 1.0)
    row = {"pattern": pattern, "sample": sample, "donor": donor, "nearest_reference": "T"}
    parents = {"parent_1": "", "parent_2": ""}
    text = "; ".join(cause) or "none found"
    return row | numbers | parents | {"causes": list(cause), "technical_cause": text}


def test_sizes_are_shares_of_the_query_cells_of_sample_and_donor():
    cells = pd.DataFrame(
        [reason_rows("P1", "S1", "a")] * 3
        + [reason_rows("P1", "S2", "b")]
        + [reason_rows("", "S2", "b")] * 2
    )
    query = pd.DataFrame({"sample": ["S1"] * 6 + ["S2"] * 4, "donor": ["a"] * 6 + ["b"] * 4})
    table = size_table(cells, query)
    assert table["pattern"].tolist() == ["P1", "P1", "no pattern"]
    assert table["n_cells"].tolist() == [3, 1, 2]
    np.testing.assert_allclose(table["share_of_query"], [0.5, 0.25, 0.5])


def test_ten_patterns_stay_in_their_order():
    cells = pd.DataFrame([reason_rows(f"P{k}") for k in range(1, 12)])
    markers = pd.DataFrame(columns=explain_anomalies.MARKER_COLUMNS)
    expected = [f"P{k}" for k in range(1, 12)]
    assert pattern_table(cells, markers)["pattern"].tolist() == expected
    query = pd.DataFrame({"sample": ["S1"], "donor": [""]})
    assert size_table(cells, query)["pattern"].tolist() == expected


def test_warnings_name_damage_and_patterns_of_one_sample():
    damaged = [reason_rows("", "S1", cause=["mitochondrial"])] * 2
    patterns = pd.DataFrame({"pattern": ["P1", "P2"], "n_samples": [1, 2]})
    cells = pd.DataFrame([*damaged, reason_rows("P1", "S2")])
    first, second = reason_warnings(cells, patterns)
    assert "2 of 3 flagged cells have a technical cause, most often mitochondrial" in first
    assert "1 of 2 patterns come from one sample alone (P1)" in second
    assert reason_warnings(pd.DataFrame([reason_rows("P1")] * 3), patterns) == []


# The rule


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Cells of which the last 12 have a gene too much, twice."""
    torch.set_num_threads(1)
    return small_run(tmp_path_factory.mktemp("inputs"), spike=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, paths):
    return train(tmp_path_factory.mktemp("train"), paths, max_steps=200, checkpoint_seconds=1e9)


@pytest.fixture(scope="module")
def latent(tmp_path_factory, paths, trained):
    return embed(tmp_path_factory.mktemp("embed"), paths, trained)


def explain(folder, paths, trained, latent, flagged, hits=SPIKED, doublets=(), latent_order=None):
    """The rule's outputs when ``flagged`` were flagged, of which ``hits`` have gene hits."""
    folder.mkdir(parents=True, exist_ok=True)
    obs = ad.read_h5ad(paths["counts"]).obs
    obs = obs[obs["split"].isin(["calibration", "query"])]
    is_query = (obs["split"] == "query").to_numpy()
    is_flagged = obs.index.isin(flagged)
    verdict = pd.DataFrame(
        {
            "cell_id": obs.index,
            "sample": obs["sample"].astype(str).to_numpy(),
            "split": obs["split"].astype(str).to_numpy(),
            "score": np.where(is_flagged, 5.0, 0.5),
            "p_value": np.where(is_flagged, 0.01, 0.5),
            "q_value": np.where(is_query, np.where(is_flagged, 0.05, 0.9), np.nan),
            "is_anomaly": is_flagged,
        }
    )
    verdict.to_parquet(folder / "verdict.parquet")
    pd.DataFrame({"cell_id": list(hits), "gene": "G3"}).to_parquet(folder / "hits.parquet")
    probability = np.where(obs.index.isin(doublets), 0.9, 0.1)
    parents = {"parent_1": "R2", "parent_2": "R1"}
    table = pd.DataFrame({"cell_id": obs.index, "doublet_probability": probability, **parents})
    table[is_query].to_parquet(folder / "doublets.parquet")
    given, folds = by_models([(trained, latent, None)])
    given |= {
        "cells": str(folder / "verdict.parquet"),
        "genes": str(folder / "hits.parquet"),
        "doublets": [str(folder / "doublets.parquet")],
    }
    params = {"folds": folds, "seed": 1}
    return run_script("explain_anomalies", folder, paths | given, OUTPUTS, params)


def read(path):
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["NA"])


@pytest.fixture(scope="module")
def explained(tmp_path_factory, paths, trained, latent):
    folder = tmp_path_factory.mktemp("patterns")
    return explain(folder, paths, trained, latent, [*SPIKED, *OTHERS], doublets=OTHERS[:1])


def test_spiked_cells_are_one_pattern_with_its_two_genes(explained):
    cells = read(explained["cells"]).set_index("cell_id")
    assert set(cells.index) == {*SPIKED, *OTHERS}
    assert (cells.loc[SPIKED, "pattern"] == "P1").all()
    assert (cells.loc[OTHERS, "pattern"] == "").sum() >= 5
    patterns, markers = read(explained["patterns"]), read(explained["markers"])
    assert patterns.loc[0, "label"].startswith(("G3+ G55+", "G55+ G3+"))
    first = markers[markers["pattern"] == "P1"].head(2)
    assert set(first["gene"]) == {"G3", "G55"}
    assert (first["direction"] == "up").all()
    assert (first["share"] == 1.0).all()
    # The residuals of all its cells, and their means are the table's.
    residuals = read(explained["residuals"])
    own = residuals[residuals["pattern"] == "P1"]
    assert set(own["cell_id"]) == set(cells.index[cells["pattern"] == "P1"])
    means = own.groupby("gene")["residual"].mean()
    np.testing.assert_allclose(means[first["gene"]], first["mean_residual"], rtol=1e-5)


def test_of_many_cells_each_pattern_shows_as_many(paths, trained, latent, monkeypatch):
    model, description = load_model(trained["weights"], trained["description"])
    cells = read_cells(paths["counts"], paths["library_size"], str(latent), description, np.inf)
    reference = Reference.of(model, cells, 1, CPU)
    flagged = cells.take(cells.obs.index.isin([*SPIKED, *OTHERS]))
    pattern = np.where(flagged.obs.index.isin(SPIKED), 0, 1)
    nearest = reference.profile.groups.nearest(flagged.latent)
    monkeypatch.setattr(explain_anomalies, "SHOWN_CELLS", 9)
    monkeypatch.setattr(explain_anomalies, "SHOWN_GENES", 1)
    markers, residuals = explain_anomalies.pattern_markers(
        model, flagged, nearest, pattern, reference.profile, CPU
    )
    assert residuals.groupby("pattern")["cell_id"].nunique().to_dict() == {"P1": 4, "P2": 4}
    assert set(residuals["gene"]) == set(markers.groupby(["pattern", "direction"])["gene"].first())
    names = flagged.obs.index[pattern == 0]
    own = residuals.loc[residuals["pattern"] == "P1", "cell_id"].unique()
    assert list(own) == list(names[some_of(names, 4)])


def test_the_table_people_read_has_every_query_cell_and_reasons_of_flagged_ones(explained):
    table = read(explained["cells_tsv"]).set_index("cell_id")
    assert ["cell_id", *table.columns] == READ
    assert len(table) == 60
    reasons = ["pattern", "nearest_reference", "technical_cause", "genes"]
    rest = table.drop([*SPIKED, *OTHERS])
    assert (rest[reasons] == "").all(axis=None)
    assert rest["doublet_probability"].notna().all()
    for cell in SPIKED:
        assert {"G3+", "G55+"} <= set(table.loc[cell, "genes"].split(", "))
    assert table.loc[OTHERS[0], "technical_cause"].startswith("doublet of R1 and R2")


def test_a_cell_without_a_gene_hit_is_explained_by_what_the_model_decodes(explained):
    cells = read(explained["cells"]).set_index("cell_id")
    assert (cells.loc[SPIKED, "basis"] == "counts").all()
    assert (cells.loc[OTHERS, "basis"] == "decoded").all()
    in_model = {f"G{g}" for g in range(40)}
    for genes in cells.loc[OTHERS, "genes"]:
        assert {gene[:-1] for gene in genes.split(", ") if gene} <= in_model


def test_genes_come_from_counts_or_else_from_the_decoded_shift():
    chunk = SimpleNamespace(
        cells=slice(0, 2),
        surprise=lambda: np.array([[9.0, -3.0, 0.0, 2.0]] * 2),
        decoded_shift=np.array([[0.1, -1.5]] * 2),
    )
    cells = SimpleNamespace(genes=pd.Index(["A", "B", "C", "D"]), in_model=np.array([3, 1]))
    profile = SimpleNamespace(compare=lambda *_: [chunk])
    found = explain_anomalies.genes_of_cells(
        None, cells, None, np.array([True, False]), profile, CPU
    )
    assert found["basis"].tolist() == ["counts", "decoded"]
    # Of the model's genes, D and B, the shift of D is too small to be named.
    assert found["genes"].tolist() == ["A+, B-, D+", "B-"]


def test_sizes_and_summary_add_up(explained):
    sizes, summary = read(explained["sizes"]), json.loads(explained["summary"].read_text())
    assert sizes["n_cells"].sum() == summary["n_flagged"] == 18
    np.testing.assert_allclose(sizes["share_of_query"], sizes["n_cells"] / 60)
    assert summary["n_in_pattern"] == sizes.loc[sizes["pattern"] != "no pattern", "n_cells"].sum()
    assert summary["n_decoded"] == 6
    assert summary["causes"]["doublet"] == 1
    assert summary["groups_named_by"] == "latent clusters"
    groups = read(explained["groups"])
    assert len(groups) == summary["n_groups"]
    assert groups["n_cells"].sum() == 260


def test_the_order_of_the_cells_changes_nothing(explained, paths, trained, latent, tmp_path):
    adata = ad.read_h5ad(paths["counts"])
    # Training cells keep their place: the clusters of the reference are another matter.
    order = np.r_[np.arange(260), np.random.default_rng(3).permutation(160) + 260]
    adata[order].copy().write_h5ad(tmp_path / "counts.h5ad")
    turned = {"counts": str(tmp_path / "counts.h5ad")}
    for name in ("library_size", "latent"):
        source = paths["library_size"] if name == "library_size" else latent
        pd.read_parquet(source).iloc[order].to_parquet(tmp_path / f"{name}.parquet")
        turned[name] = str(tmp_path / f"{name}.parquet")
    again = explain(
        tmp_path / "out", turned, trained, turned.pop("latent"), [*SPIKED, *OTHERS],
        doublets=OTHERS[:1],
    )  # fmt: skip
    before, after = read(explained["cells"]), read(again["cells"])
    pd.testing.assert_frame_equal(before, after, rtol=1e-4, atol=1e-6)


def test_the_same_inputs_give_the_same_bytes(explained, paths, trained, latent, tmp_path):
    again = explain(tmp_path, paths, trained, latent, [*SPIKED, *OTHERS], doublets=OTHERS[:1])
    for name, path in explained.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_where_the_counts_lie_changes_no_byte(
    explained, paths, trained, latent, tmp_path, counts_stay
):
    again = explain(tmp_path, paths, trained, latent, [*SPIKED, *OTHERS], doublets=OTHERS[:1])
    for name, path in explained.items():
        assert again[name].read_bytes() == path.read_bytes(), name


@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_flagged_cells_are_no_trouble(n, explained, paths, trained, latent, tmp_path):
    few = explain(tmp_path, paths, trained, latent, SPIKED[:n])
    cells = read(few["cells"])
    assert list(cells.columns) == list(read(explained["cells"]).columns)
    assert len(cells) == n
    table = read(few["cells_tsv"])
    assert len(table) == 60
    assert list(table.columns) == READ
    assert len(read(few["patterns"])) == (1 if n == 3 else 0)
    assert json.loads(few["summary"].read_text())["n_flagged"] == n


def test_cells_beyond_those_that_define_patterns_are_assigned(
    paths, trained, latent, monkeypatch, tmp_path
):
    model, description = load_model(trained["weights"], trained["description"])
    cells = read_cells(paths["counts"], paths["library_size"], str(latent), description, np.inf)
    monkeypatch.setattr(explain_anomalies, "DEFINING_CELLS", 6)
    flagged = cells.take(cells.obs.index.get_indexer(SPIKED))
    reference = Reference.of(model, cells, 1, CPU)
    nearest = reference.profile.groups.nearest(flagged.latent)
    pattern, _, _ = explain_anomalies.find_patterns(model, flagged, nearest, reference, 1, CPU)
    np.testing.assert_array_equal(pattern, 0)


def test_a_sample_of_cells_does_not_depend_on_their_order():
    names = pd.Index([f"c{i}" for i in range(100)])
    chosen = set(names[some_of(names, 20)])
    assert len(chosen) == 20
    assert set(names[::-1][some_of(names[::-1], 20)]) == chosen


def test_damaged_cells_are_told_from_a_new_state(explained, paths, trained, latent, tmp_path):
    percent = np.random.default_rng(0).uniform(1, 4, 420)
    percent[408:414] = 30.0
    ill = with_obs(paths, tmp_path, pct_mito=percent)
    cells = read(explain(tmp_path, ill, trained, latent, SPIKED)["cells"]).set_index("cell_id")
    assert cells.loc[SPIKED[:6], "technical_cause"].str.contains("mitochondrial").all()
    assert not cells.loc[SPIKED[6:], "technical_cause"].str.contains("mitochondrial").any()
    assert (cells["pct_mito_reference"] < 4).all()


def test_labels_of_the_reference_name_the_nearest_type(paths, trained, latent, tmp_path):
    # Labels of query cells are there and wrong; nothing may read them.
    place = pd.read_parquet(latent)["mean_0"].to_numpy()
    label = np.where(place > np.median(place), "high", "low").astype(object)
    label[360:] = "of the query"
    named = with_obs(paths, tmp_path, cell_type=label)
    out = explain(tmp_path, named, trained, latent, OTHERS)
    cells = read(out["cells"])
    assert set(cells["nearest_reference"]) <= {"high", "low"}
    assert json.loads(out["summary"].read_text())["groups_named_by"] == "cell_type"


def test_the_profile_of_a_group_expects_what_its_cells_count(paths, trained, latent):
    description = read_json(trained["description"])
    model = load_model(trained["weights"], trained["description"])[0]
    cells = read_cells(paths["counts"], paths["library_size"], str(latent), description, np.inf)
    made_of = cells.of("train", "validation")
    label = np.where(made_of.latent[:, 0] > 0, "a", "b")
    groups = reference_groups(made_of.latent, pd.DataFrame({"cell_type": label}), 1)
    profile = ReferenceProfile.fit(model, made_of, groups, 1, CPU)
    some = made_of.take(groups.code == 0)
    sums = GeneSums.empty(60)
    nearest = np.zeros(len(some), dtype=int)
    for chunk in profile.compare(model, some, nearest, CPU):
        sums.add(chunk, np.ones(len(chunk.counts), bool), nearest[chunk.cells], profile.variance)
    # Exactly, but for the one count that is added to both.
    np.testing.assert_allclose(sums.reference, sums.observed, rtol=0.05, atol=1.0)
    np.testing.assert_allclose(profile.share.sum(1), 1.0)
    # Cells that made the profile scatter about it as it says.
    scatter = np.square(sums.residual / len(some))
    assert scatter.max() < 0.5
