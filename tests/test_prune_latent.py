"""The rule prune_latent: the verdict in words, its warnings, its files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model_inputs import read_model_inputs
from omics_vae.inference import HeldOut, embed, held_out_elbo
from omics_vae.model import load_model, save_model
from omics_vae.pruning import EVIDENCE_DRAWS, Evidence
from prune_latent import elbo_row, evidence_table, pruning_warnings
from run_script import run_script
from simulated_counts import CPU, PRUNE, TRAIN, small_model, small_run

OUTPUT = {
    "weights": "model.safetensors",
    "description": "model.json",
    "evidence": "evidence.parquet",
    "evidence_tsv": "evidence.tsv",
    "elbo": "elbo.tsv",
    "history": "history.parquet",
    "summary": "summary.json",
}


def run(folder, inputs):
    folder.mkdir(exist_ok=True)
    params = {
        "settings": PRUNE,
        "training": TRAIN,
        "seed": 1,
        "device": "cpu",
        "checkpoint": str(folder / "checkpoint.safetensors"),
        "code": "a hash",
    }
    return run_script("prune_latent", folder, inputs, OUTPUT, params)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Counts, sizes and a model whose third dimension the decoder does not hear."""
    folder = tmp_path_factory.mktemp("inputs")
    paths = small_run(folder)
    paths |= {"weights": str(folder / "m.safetensors"), "description": str(folder / "m.json")}
    data = read_model_inputs(paths["counts"], paths["library_size"])
    model = small_model(data.split("train"), n_latent=4)
    model.decoder_input.weight.data[:, 2] = 0.0
    save_model(model, paths["weights"], paths["description"], data.genes)
    return paths


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, inputs):
    return run(tmp_path_factory.mktemp("prune"), inputs)


def test_the_files_tell_one_story(pruned, inputs):
    summary = json.loads(pruned["summary"].read_text())
    evidence = pd.read_parquet(pruned["evidence"])
    elbo = pd.read_csv(pruned["elbo"], sep="\t")
    assert list(evidence["dimension"]) == [0, 1, 2, 3]
    assert not evidence["kept"][2]
    assert summary["n_latent"] == 4
    assert summary["n_kept"] == evidence["kept"].sum()
    assert list(elbo["stage"]) == ["trained", "cut", "fine-tuned"]
    assert list(elbo["n_latent"]) == [4, summary["n_kept"], summary["n_kept"]]
    np.testing.assert_allclose(elbo["elbo"], elbo["reconstruction"] - elbo["kl"], rtol=1e-6)
    model, genes = load_model(pruned["weights"], pruned["description"])
    data = read_model_inputs(inputs["counts"], inputs["library_size"])
    assert genes == data.genes
    held_out = held_out_elbo(model, data.split("validation"), CPU, EVIDENCE_DRAWS)
    assert held_out.elbo == pytest.approx(elbo["elbo"].iloc[-1], rel=1e-8)
    left = {path.name for path in pruned["weights"].parent.iterdir()}
    assert left == {*OUTPUT.values(), "prune_latent.log"}
    # Fine-tuning has no second warm-up.
    assert (pd.read_parquet(pruned["history"])["beta"] == 1.0).all()


def test_the_same_inputs_give_the_same_bytes(pruned, inputs, tmp_path):
    again = run(tmp_path / "again", inputs)
    for name, path in pruned.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_a_model_of_other_genes_is_one_line_for_the_user(inputs, tmp_path):
    other = inputs | {"description": str(tmp_path / "m.json")}
    content = json.loads(Path(inputs["description"]).read_text())
    content["genes"] = content["genes"][::-1]
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        run(tmp_path, other)
    assert "the model's genes are not those" in (tmp_path / "prune_latent.log").read_text()


def test_embedding_writes_the_posterior_of_every_cell(pruned, inputs, tmp_path):
    given = inputs | {name: str(pruned[name]) for name in ("weights", "description")}
    output = {"latent": "latent.parquet"}
    latent = pd.read_parquet(
        run_script("embed_cells", tmp_path, given, output, {"device": "cpu"})["latent"]
    )
    model, _ = load_model(pruned["weights"], pruned["description"])
    data = read_model_inputs(inputs["counts"], inputs["library_size"])
    mean, variance = embed(model, data.data, CPU)
    n = model.architecture.n_latent
    assert list(latent.columns) == [
        "cell_id",
        *(f"mean_{j}" for j in range(n)),
        *(f"variance_{j}" for j in range(n)),
    ]
    assert list(latent["cell_id"]) == list(data.cells.index)
    np.testing.assert_array_equal(latent.filter(like="mean_").to_numpy(), mean)
    np.testing.assert_array_equal(latent.filter(like="variance_").to_numpy(), variance)


def test_each_verdict_has_its_reason():
    kl, ablation = np.array([1.0, 0.01, 1.0, 0.02]), np.array([2.0, 1.0, -0.5, -0.1])
    evidence = Evidence(kl, kl, kl, ablation, kl)
    table = evidence_table(evidence, evidence.keep(0.05, 0.05), PRUNE)
    assert table["kept"].tolist() == [True, False, False, False]
    assert table["reason"].tolist() == [
        "informative and worth its KL",
        "KL 0.010 <= 0.05",
        "ELBO lost without it -0.500 <= 0.05",
        "KL 0.020 <= 0.05; ELBO lost without it -0.100 <= 0.05",
    ]
    none = Evidence(kl * 0, kl, kl, -kl, kl)
    reasons = evidence_table(none, none.keep(0.05, 0.05), PRUNE)["reason"]
    assert reasons.str.contains("kept all the same").sum() == 1


def elbo_table(trained, tuned, se=1.0):
    parts = {"reconstruction": 0.0, "kl": np.zeros(2)}
    return pd.DataFrame(
        [
            elbo_row("trained", HeldOut(elbo=trained, elbo_se=se, **parts)),
            elbo_row("cut", HeldOut(elbo=-999.0, elbo_se=se, **parts)),
            elbo_row("fine-tuned", HeldOut(elbo=tuned, elbo_se=se, **parts)),
        ]
    )


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
    found = pruning_warnings(np.array(kept), elbo_table(-100.0, tuned), np.array(again))
    assert len(found) == len(expected)
    for warning, words in zip(found, expected, strict=True):
        assert words in warning
