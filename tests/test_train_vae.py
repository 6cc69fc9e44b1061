"""The rule train_vae: its files, its warnings, its lines in the log."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from job import InputError
from model_inputs import device_or_error, read_model_inputs
from omics_vae import training
from omics_vae.inference import held_out_elbo
from omics_vae.model import load_model
from omics_vae.training import Progress
from run_script import run_script
from simulated_counts import CPU, SPLITS, TRAIN, gene_names, small_run
from train_vae import (
    ProgressReport,
    build_model,
    kl_table,
    run_training,
    training_plan,
    training_warnings,
)

OUTPUT = {
    "weights": "model.safetensors",
    "description": "model.json",
    "history": "history.parquet",
    "kl": "kl.parquet",
    "summary": "summary.json",
}


def run(folder, paths, seed=1, settings=TRAIN):
    folder.mkdir(exist_ok=True)
    params = {
        "settings": settings,
        "seed": seed,
        "device": "cpu",
        "checkpoint": str(folder / "checkpoint.safetensors"),
        "code": "a hash",
    }
    return run_script("train_vae", folder, paths, OUTPUT, params)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, paths):
    return run(tmp_path_factory.mktemp("train"), paths)


def test_the_files_tell_one_story(trained, paths):
    summary = json.loads(trained["summary"].read_text())
    history, kl = (pd.read_parquet(trained[name]) for name in ("history", "kl"))
    assert (summary["n_train"], summary["n_validation"]) == (200, 60)
    assert (summary["n_genes"], summary["n_latent"]) == (40, 4)
    assert summary["steps_per_epoch"] == 4
    assert summary["warmup_ends_at_step"] == 20
    assert summary["stopped_by"] in ("early stopping", "max_steps")
    assert summary["best_step"] >= 20
    assert history["step"].iloc[-1] == summary["steps"]
    at_best = history.loc[history["step"] == summary["best_step"], "validation_elbo"].item()
    assert at_best == summary["best_elbo"]
    assert list(kl.columns) == ["step", "dimension", "kl"]
    per_step = kl.groupby("step")["kl"].sum().to_numpy()
    np.testing.assert_allclose(per_step, history["validation_kl"])
    # The stored model is the one of the best step.
    model, genes = load_model(trained["weights"], trained["description"])
    inputs = read_model_inputs(**paths)
    assert genes == inputs.genes == gene_names(40)
    assert held_out_elbo(model, inputs.split("validation"), CPU).elbo == summary["best_elbo"]
    left = {path.name for path in trained["weights"].parent.iterdir()}
    assert left == {*OUTPUT.values(), "train_vae.log"}, "no checkpoint, no partial file"


def test_the_same_seed_gives_the_same_bytes(trained, paths, tmp_path):
    again = run(tmp_path / "again", paths)
    for name, path in trained.items():
        assert again[name].read_bytes() == path.read_bytes(), name
    other = run(tmp_path / "other", paths, seed=2)
    assert other["weights"].read_bytes() != trained["weights"].read_bytes()


def test_a_killed_job_run_again_gives_the_same_bytes(trained, paths, tmp_path, monkeypatch):
    real = training._evaluate

    def dies(model, validation, plan, progress, *rest):
        if progress.step == 50:
            raise KeyboardInterrupt
        real(model, validation, plan, progress, *rest)

    monkeypatch.setattr(training, "_evaluate", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, paths)
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.undo()
    again = run(tmp_path, paths)
    for name, path in trained.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_a_loss_that_is_no_number_is_one_line_for_the_user(paths, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, paths, settings=TRAIN | {"learning_rate": 1e30})
    assert stop.value.code == 1
    lines = (tmp_path / "train_vae.log").read_text().splitlines()
    assert "lower train.learning_rate" in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_splits_are_read_by_name_and_the_model_starts_from_the_training_cells(paths):
    inputs = read_model_inputs(**paths)
    for name, n in SPLITS.items():
        assert len(inputs.split(name)) == n
    train = inputs.split("train")
    model = build_model(inputs, TRAIN, seed=1)
    assert float(model.log_common_depth) == pytest.approx(np.median(train.log_offset))
    assert not np.isclose(np.median(train.log_offset), np.median(inputs.data.log_offset))


def test_library_sizes_of_other_cells_are_refused(paths, tmp_path):
    sizes = pd.read_parquet(paths["library_size"]).iloc[::-1]
    sizes.to_parquet(tmp_path / "l.parquet")
    with pytest.raises(InputError, match="its cells are not those of counts"):
        read_model_inputs(paths["counts"], str(tmp_path / "l.parquet"))


def test_a_missing_gpu_is_one_line_for_the_user(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="device: cuda: no CUDA device is visible; set device"):
        device_or_error("cuda")


def test_the_plan_is_the_config():
    plan = training_plan(TRAIN, seed=5)
    assert plan.seed == 5
    for name in set(TRAIN) - {"n_latent", "n_hidden", "dropout"}:
        assert getattr(plan, name) == TRAIN[name]


@pytest.mark.parametrize(
    ("stopped_by", "active", "expected"),
    [
        ("early stopping", 2, []),
        ("max_steps", 2, ["raise train.max_steps"]),
        ("early stopping", 0, ["Posterior collapse"]),
        ("early stopping", 4, ["raise train.n_latent"]),
        ("max_steps", 4, ["raise train.max_steps", "raise train.n_latent"]),
    ],
)
def test_warnings_appear_when_they_should_and_not_else(stopped_by, active, expected):
    progress = Progress(stopped_by=stopped_by)
    found = training_warnings(progress, training_plan(TRAIN, 1), active, n_latent=4)
    assert len(found) == len(expected)
    for warning, words in zip(found, expected, strict=True):
        assert words in warning
        assert "\n" not in warning


def progress_at(step, stopped_by=""):
    row = {"step": step, "epoch": 1.0, "beta": 1.0, "train_elbo": -1.0, "validation_elbo": -2.0}
    return Progress(step=step, history=[row], kl=[[0.5, 0.25]], stopped_by=stopped_by)


def test_the_log_has_a_line_now_and_then_and_one_at_the_end(caplog):
    report = ProgressReport(logging.getLogger("anomics"), "train_vae", 1000)
    with caplog.at_level(logging.INFO, "anomics"):
        for step in range(25, 1000, 25):
            report(progress_at(step))
        report(progress_at(1000, "max_steps"))
    steps = [int(line.split("step ")[1].split(",")[0]) for line in caplog.messages]
    assert steps == [25, 275, 525, 775, 1000]
    assert "held-out" in caplog.messages[0]


def test_the_kl_table_is_long():
    table = kl_table(progress_at(25))
    assert table.to_dict("list") == {"step": [25, 25], "dimension": [0, 1], "kl": [0.5, 0.25]}


def test_what_is_not_the_users_fault_keeps_its_traceback(paths, tmp_path, monkeypatch):
    inputs = read_model_inputs(**paths)
    plan = replace(training_plan(TRAIN, 1), max_steps=21)
    log = SimpleNamespace(info=lambda *args: 1 / 0)
    params = SimpleNamespace(checkpoint=tmp_path / "c", code="")
    with pytest.raises(ZeroDivisionError):
        run_training(build_model(inputs, TRAIN, 1), inputs, plan, CPU, params, log, "x")
