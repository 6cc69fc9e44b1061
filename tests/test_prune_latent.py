"""The rule prune_latent: its files, the verdict in words, warnings; and embed_cells after it."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from design import Design
from job import write_parquet
from model_inputs import LATENT_COLUMNS, embedding_of, latent_table
from model_jobs import PRUNED, embed, prune, read_inputs, with_obs
from omics_vae import inference
from omics_vae.inference import CellElbo, Embedding, cell_elbo
from omics_vae.model import load_model, save_model
from omics_vae.pruning import EVIDENCE_DRAWS, Evidence
from prune_latent import elbo_row, evidence_table, pruning_warnings, range_of_dimensions
from simulated_counts import CPU, PRUNE, small_model, small_run, write_counts

NO_DESIGN = Design({}, {}, []).as_json()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Counts, sizes and a model whose third dimension the decoder does not hear."""
    folder = tmp_path_factory.mktemp("inputs")
    paths = small_run(folder)
    paths |= {"weights": str(folder / "m.safetensors"), "description": str(folder / "m.json")}
    data = read_inputs(paths)
    model = small_model(data.split("train"), n_latent=4)
    model.decoder[0].weight.data[:, 2] = 0.0
    save_model(model, paths["weights"], paths["description"], data.genes, design=NO_DESIGN)
    return paths


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, inputs):
    return prune(tmp_path_factory.mktemp("prune"), inputs, inputs)


def test_the_files_tell_one_story(pruned, inputs):
    summary = json.loads(pruned["summary"].read_text())
    evidence = pd.read_parquet(pruned["evidence"])
    elbo = pd.read_csv(pruned["elbo"], sep="\t")
    assert list(evidence["dimension"]) == [0, 1, 2, 3]
    assert not evidence["kept"][2]
    assert (evidence[["kl_se", "ablation_se"]] >= 0).all(axis=None)
    assert summary["n_latent"] == 4
    assert summary["n_kept"] == evidence["kept"].sum()
    low, high = summary["n_kept_range"]
    assert 1 <= low <= summary["n_kept"] <= high <= 4
    assert (low, high) == range_of_dimensions(evidence["kept"], evidence["sure"])
    assert list(elbo["stage"]) == ["trained", "cut", "fine-tuned"]
    assert list(elbo["n_latent"]) == [4, summary["n_kept"], summary["n_kept"]]
    np.testing.assert_allclose(elbo["elbo"], elbo["reconstruction"] - elbo["kl"], rtol=1e-6)
    model, content = load_model(pruned["weights"], pruned["description"])
    data = read_inputs(inputs)
    assert content["genes"] == data.genes
    assert content["design"] == NO_DESIGN
    held_out = cell_elbo(model, data.split("validation"), CPU, EVIDENCE_DRAWS)
    assert held_out.mean == pytest.approx(elbo["elbo"].iloc[-1], rel=1e-8)
    left = {path.name for path in pruned["weights"].parent.iterdir()}
    assert left == {*PRUNED.values(), "prune_latent.log"}
    # Fine-tuning has no second warm-up.
    assert (pd.read_parquet(pruned["history"])["beta"] == 1.0).all()


def test_the_same_inputs_give_the_same_bytes(pruned, inputs, tmp_path):
    again = prune(tmp_path / "again", inputs, inputs)
    for name, path in pruned.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_where_the_counts_lie_changes_no_byte(pruned, inputs, tmp_path, counts_stay):
    again = prune(tmp_path / "again", inputs, inputs)
    for name, path in pruned.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_a_model_of_other_genes_is_one_line_for_the_user(inputs, tmp_path):
    other = inputs | {"description": str(tmp_path / "m.json")}
    content = json.loads(Path(inputs["description"]).read_text())
    content["genes"] = content["genes"][::-1]
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        prune(tmp_path, inputs, other)
    assert "the model's genes are not those" in (tmp_path / "prune_latent.log").read_text()


def test_cells_held_out_of_the_training_do_not_prune_either(inputs, tmp_path):
    """Those of the fold, and those of a held-out group: other counts of them change nothing."""
    fold = np.arange(420) % 2 + 1
    folded = with_obs(inputs, tmp_path / "in", fold=fold)
    held = np.arange(200, 220)
    pd.DataFrame({"cell_id": [f"cell{i}" for i in held]}).to_parquet(tmp_path / "held.parquet")
    adata = ad.read_h5ad(folded["counts"])
    counts = adata.X.tolil()
    counts[np.r_[np.flatnonzero(fold == 2), held], 0] = 500
    adata.X = counts.tocsr()
    other = folded | write_counts(tmp_path / "other", adata)
    kept_out = {"fold": 2, "held": str(tmp_path / "held.parquet")}
    first = prune(tmp_path / "a", folded, inputs, **kept_out)
    again = prune(tmp_path / "b", other, inputs, **kept_out)
    for name, path in first.items():
        assert again[name].read_bytes() == path.read_bytes(), name
    seen = prune(tmp_path / "c", other, inputs, fold=2)
    assert seen["elbo"].read_bytes() != again["elbo"].read_bytes()


# ---- the posterior of every cell


def test_the_posterior_is_written_in_the_order_of_all_counts(pruned, inputs, tmp_path):
    ordered = pd.read_parquet(embed(tmp_path / "ordered", inputs, pruned))
    adata = ad.read_h5ad(inputs["counts"])
    order = np.random.default_rng(0).permutation(adata.n_obs)
    mixed = inputs | write_counts(tmp_path, adata, order)
    found = pd.read_parquet(embed(tmp_path / "mixed", mixed, pruned))
    assert found["cell_id"].tolist() == ordered["cell_id"].tolist()
    np.testing.assert_allclose(
        found.drop(columns="cell_id"), ordered.drop(columns="cell_id"), rtol=1e-4, atol=1e-5
    )


def test_embedding_writes_the_posterior_of_every_cell(pruned, inputs, tmp_path):
    latent = pd.read_parquet(embed(tmp_path, inputs, pruned))
    model, _ = load_model(pruned["weights"], pruned["description"])
    data = read_inputs(inputs)
    at = inference.embed(model, data.data, CPU)
    n = model.architecture.n_latent
    assert list(latent.columns) == [
        "cell_id",
        *(f"mean_{j}" for j in range(n)),
        *(f"variance_{j}" for j in range(n)),
        "log_size",
        "log_size_variance",
    ]
    assert list(latent["cell_id"]) == list(data.cells.index)
    np.testing.assert_array_equal(latent.filter(like="mean_").to_numpy(), at.mean)
    assert (latent["log_size_variance"] == 0).all()
    np.testing.assert_allclose(latent["log_size"], data.data.log_offset, rtol=1e-6)


@pytest.mark.parametrize("refine", [False, True])
def test_where_the_counts_lie_moves_no_posterior(pruned, inputs, tmp_path, request, refine):
    read = embed(tmp_path / "read", inputs, pruned, for_scores=refine)
    request.getfixturevalue("counts_stay")
    left = embed(tmp_path / "left", inputs, pruned, for_scores=refine)
    assert left.read_bytes() == read.read_bytes()


def test_refined_posteriors_are_better_and_written_only_where_asked_for(pruned, inputs, tmp_path):
    plain = embed(tmp_path / "plain", inputs, pruned, steps=99).read_bytes()
    assert embed(tmp_path / "again", inputs, pruned).read_bytes() == plain
    path = embed(tmp_path / "refined", inputs, pruned, steps=20, for_scores=True)
    refined = embedding_of(pd.read_parquet(path))
    model, _ = load_model(pruned["weights"], pruned["description"])
    data = read_inputs(inputs).data
    # By the draws of the job's own seed no cell has lost, and most have gained.
    gain = cell_elbo(model, data, CPU, 16, seed=1, at=refined).of_cells
    gain -= cell_elbo(model, data, CPU, 16, seed=1).of_cells
    assert (gain > 0.001).mean() > 0.5
    assert gain.min() > -1e-3


def test_an_embedding_survives_its_table(tmp_path):
    rng = np.random.default_rng(0)
    matrices = [rng.random((5, 3)).astype(np.float32) for _ in LATENT_COLUMNS]
    at = Embedding(*matrices, *(rng.random((2, 5)).astype(np.float32)))
    write_parquet(latent_table(np.array(list("abcde")), at), tmp_path / "latent.parquet")
    again = embedding_of(pd.read_parquet(tmp_path / "latent.parquet"))
    for name in Embedding.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(at, name))


# ---- the verdict in words


def evidence_of(kl, ablation, se=0.01) -> Evidence:
    kl, ablation = np.array(kl), np.array(ablation)
    return Evidence(kl, kl * 0 + se, kl, kl, ablation, kl * 0 + se, kl)


def test_each_verdict_has_its_reason():
    evidence = evidence_of([1.0, 0.01, 1.0, 0.02], [2.0, 1.0, -0.5, -0.1])
    table = evidence_table(evidence, evidence.keep(0.05, 0.05), PRUNE)
    assert table["kept"].tolist() == [True, False, False, False]
    assert table["reason"].tolist() == [
        "informative and worth its KL",
        "KL 0.010 <= 0.05",
        "ELBO lost without it -0.500 <= 0.05",
        "KL 0.020 <= 0.05; ELBO lost without it -0.100 <= 0.05",
    ]
    none = evidence_of([0.0, 0.0], [-1.0, -2.0])
    reasons = evidence_table(none, none.keep(0.05, 0.05), PRUNE)["reason"]
    assert reasons.str.contains("kept all the same").sum() == 1


def test_verdicts_near_the_threshold_are_marked_and_counted():
    # Kept surely, kept barely, cut barely, cut surely by one measure though the other is near.
    evidence = evidence_of([1.0, 0.06, 0.04, 0.04], [1.0, 1.0, 1.0, -1.0])
    kept = evidence.keep(0.05, 0.05)
    table = evidence_table(evidence, kept, PRUNE)
    assert table["kept"].tolist() == [True, True, False, False]
    assert table["sure"].tolist() == [True, False, False, True]
    assert (table["kl_se"] == 0.01).all() and (table["ablation_se"] == 0.01).all()
    assert range_of_dimensions(kept, table["sure"].to_numpy()) == (1, 3)


def test_at_least_one_dimension_is_left_whatever_the_errors():
    nothing = np.zeros(3, dtype=bool)
    assert range_of_dimensions(~nothing, nothing) == (1, 3)
    assert range_of_dimensions(nothing, ~nothing) == (1, 1)


def cells_of(elbo: float, se: float) -> CellElbo:
    """Four cells of this mean ELBO and standard error."""
    spread = np.array([-1.0, 1.0, -1.0, 1.0]) * se * np.sqrt(3.0)
    return CellElbo(elbo + spread, np.zeros(4), np.zeros((4, 2)))


def elbo_table(trained, tuned, se=1.0):
    stages = {"trained": trained, "cut": -999.0, "fine-tuned": tuned}
    return pd.DataFrame([elbo_row(stage, cells_of(elbo, se)) for stage, elbo in stages.items()])


def test_a_row_of_the_elbo_table_is_the_mean_over_cells():
    row = elbo_row("cut", CellElbo(np.array([1.0, 3.0]), np.array([1.0, 0.0]), np.zeros((2, 5))))
    assert row.pop("stage") == "cut"
    expected = {"n_latent": 5, "elbo": 1.5, "elbo_se": 1.5, "reconstruction": 2.0, "kl": 0.5}
    assert row == pytest.approx(expected)


YES, NO = True, False


@pytest.mark.parametrize(
    ("kept", "tuned", "again", "expected"),
    [
        ([YES, YES, NO], -100.0, [YES, YES], []),
        ([YES, YES, NO], -101.9, [YES, YES], []),
        ([YES, YES, NO], -102.1, [YES, YES], ["Cutting cost 2.10 nats"]),
        ([YES, NO, NO], -100.0, [YES], ["Only one latent dimension"]),
        ([YES, YES, YES], -100.0, [YES] * 3, ["No latent dimension could be cut"]),
        ([YES, YES, NO], -100.0, [YES, NO], ["1 of 2 kept dimensions would fail"]),
    ],
)
def test_warnings_appear_when_they_should_and_not_else(kept, tuned, again, expected):
    kept = np.array(kept)
    found = pruning_warnings(kept, kept | True, elbo_table(-100.0, tuned), np.array(again))
    assert len(found) == len(expected)
    for warning, words in zip(found, expected, strict=True):
        assert words in warning


@pytest.mark.parametrize(
    ("n_kept", "n_unsure", "expected"),
    [
        (4, 2, False),  # 4 to 6
        (4, 3, True),  # 4 to 7
        (12, 6, False),  # up to half of what was kept
        (12, 7, True),
    ],
)
def test_a_number_of_dimensions_that_could_be_another_is_warned_of(n_kept, n_unsure, expected):
    kept = np.arange(30) < n_kept
    sure = ~((np.arange(30) >= n_kept) & (np.arange(30) < n_kept + n_unsure))
    found = pruning_warnings(kept, sure, elbo_table(-100.0, -100.0), np.full(n_kept, True))
    words = f"{n_kept} were kept, two standard errors allow {n_kept} to {n_kept + n_unsure}; "
    assert [words in warning for warning in found] == [True] * expected
