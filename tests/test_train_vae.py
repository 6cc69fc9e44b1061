"""The rule train_vae: its files, its warnings, its lines in the log."""

import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import train_vae
from conftest import ROOT
from design import Design, make_design
from job import InputError
from messages import is_said
from model_inputs import device_or_error, read_model
from model_jobs import SETTINGS, TRAINED, read_inputs, train, with_obs
from omics_vae import training
from omics_vae.collapse import Diagnosis
from omics_vae.inference import cell_elbo
from omics_vae.model import Architecture, load_model
from omics_vae.pruning import EVIDENCE_DRAWS, signal_axes
from omics_vae.training import Progress
from simulated_counts import CPU, SPLITS, gene_names, small_run, write_counts
from train_vae import (
    ARCHITECTURE,
    PLAN,
    ProgressReport,
    build_model,
    kl_table,
    run_training,
    training_plan,
    training_warnings,
)

NO_DESIGN = Design({}, {}, [])


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, paths):
    return train(tmp_path_factory.mktemp("train"), paths)


def summary_of(run: dict) -> dict:
    return json.loads(run["summary"].read_text())


def test_the_files_tell_one_story(trained, paths):
    summary = summary_of(trained)
    history, kl = (pd.read_parquet(trained[name]) for name in ("history", "kl"))
    assert (summary["n_train"], summary["n_validation"]) == (200, 60)
    assert (summary["n_genes"], summary["n_latent"], summary["beta"]) == (40, 4, 1.0)
    assert summary["steps_per_epoch"] == 4
    assert summary["warmup_ends_at_step"] == 20
    assert summary["stopped_by"] in ("early stopping", "max_steps")
    assert summary["best_step"] >= 20
    assert history["step"].iloc[-1] == summary["steps"]
    cells = pd.read_parquet(trained["validation"])
    elbo = cells["reconstruction"] - cells["kl"]
    assert len(cells) == 60
    np.testing.assert_allclose(summary["elbo"], elbo.mean(), rtol=1e-9)
    np.testing.assert_allclose(summary["elbo_se"], elbo.std(ddof=1) / np.sqrt(60), rtol=1e-9)
    assert list(kl.columns) == ["step", "dimension", "kl"]
    per_step = kl.groupby("step")["kl"].sum().to_numpy()
    np.testing.assert_allclose(per_step, history["validation_kl"])
    # The stored model is the one of the best step.
    model, content = load_model(trained["weights"], trained["description"])
    inputs = read_inputs(paths)
    assert content["genes"] == inputs.genes == gene_names(40)
    assert content["design"] == NO_DESIGN.as_json()
    assert content["architecture"] == summary["architecture"]
    validation = inputs.split("validation")
    at_best = history.loc[history["step"] == summary["best_step"]].iloc[0]
    assert cell_elbo(model, validation, CPU).mean == at_best["validation_elbo"]
    left = {path.name for path in trained["weights"].parent.iterdir()}
    assert left == {*TRAINED.values(), "train_vae.log"}, "no checkpoint, no partial file"


def test_rate_distortion_and_use_of_z_are_those_of_the_stored_model(trained, paths):
    summary = summary_of(trained)
    model, _ = load_model(trained["weights"], trained["description"])
    inputs = read_inputs(paths)
    elbo = cell_elbo(model, inputs.split("validation"), CPU, EVIDENCE_DRAWS)
    assert summary["elbo"] == elbo.mean
    assert summary["elbo_se"] == elbo.se
    assert summary["rate"] == pytest.approx(elbo.kl.mean())
    assert summary["elbo"] == pytest.approx(-summary["distortion"] - summary["rate"])
    assert summary["signal_axes"] == signal_axes(inputs.split("train"))
    assert 0 < summary["mutual_information"] < np.log(60)
    assert summary["mutual_information"] < summary["rate"]
    assert 1 <= summary["active_units"] <= 4
    assert summary["collapse"] is None
    history = pd.read_parquet(trained["history"])
    assert history["active_units"].between(0, 4).all()
    assert history["mutual_information"].iloc[-1] > history["mutual_information"].iloc[0]


def test_the_same_seed_gives_the_same_bytes(trained, paths, tmp_path):
    again = train(tmp_path / "again", paths)
    for name, path in trained.items():
        assert again[name].read_bytes() == path.read_bytes(), name
    other = train(tmp_path / "other", paths, seed=2)
    assert other["weights"].read_bytes() != trained["weights"].read_bytes()


def test_a_killed_job_run_again_gives_the_same_bytes(trained, paths, tmp_path, monkeypatch):
    real = training._evaluate

    def dies(model, validation, plan, progress, *rest):
        if progress.step == 50:
            raise KeyboardInterrupt
        real(model, validation, plan, progress, *rest)

    monkeypatch.setattr(training, "_evaluate", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, paths)
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.undo()
    again = train(tmp_path, paths)
    for name, path in trained.items():
        assert again[name].read_bytes() == path.read_bytes(), name


CHILD = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from model_jobs import train
train(Path(sys.argv[1]), {paths!r}, **{changed!r})
"""
# Seconds of training, and a look now and then; no checkpoint but one that is asked for.
LONG = {"max_steps": 3000, "validation_interval": 250, "patience": 1000, "checkpoint_seconds": 1e6}


def told_to_end(folder: Path, paths: dict, number: int) -> tuple[int, str, float]:
    """A process of train_vae that gets a signal in mid-training: its code, stderr, last seconds."""
    path = [str(ROOT / "tests"), str(ROOT / "workflow" / "scripts")]
    program = CHILD.format(path=path, paths=paths, changed=LONG)
    command = [sys.executable, "-c", program, str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log, before = folder / "train_vae.log", time.monotonic()
    while not (log.exists() and "train_vae: step " in log.read_text()):
        assert process.poll() is None and time.monotonic() < before + 120
        time.sleep(0.02)
    asked = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, time.monotonic() - asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_told_to_end_in_mid_training_loses_no_step(paths, tmp_path, number):
    folder = tmp_path / "ended"
    code, errors, seconds = told_to_end(folder, paths, number)
    assert (code, errors) == (143, "")
    assert seconds < 10
    *_, last = (folder / "train_vae.log").read_text().splitlines()
    told = re.search(
        r" ERROR rule train_vae: ended by a signal \(cancelled, preempted or out of time\); "
        r"a checkpoint of step (\d+) is written; the same command goes on from there$",
        last,
    )
    step = int(told[1])
    assert 250 <= step < 3000
    left = {file.name for file in folder.iterdir()}
    assert left == {"train_vae.log", "checkpoint.safetensors"}
    again = train(folder, paths, **LONG)
    first = (folder / "train_vae.log").read_text().splitlines()[0]
    assert first.endswith(f" INFO train_vae: goes on from the checkpoint of step {step}")
    assert not (folder / "checkpoint.safetensors").exists()
    undisturbed = train(tmp_path / "whole", paths, **LONG)
    for name, path in undisturbed.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_a_checkpoint_of_other_settings_is_told_of_in_the_log(paths, tmp_path, monkeypatch):
    real = training._evaluate

    def told_to_end_at_a_look(model, validation, plan, progress, *rest):
        real(model, validation, plan, progress, *rest)
        if progress.step == 30:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "_evaluate", told_to_end_at_a_look)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, paths)
    assert stopped.value.code == 143
    monkeypatch.undo()
    again = train(tmp_path, paths, beta=2.0)
    log = (tmp_path / "train_vae.log").read_text()
    assert (
        "INFO train_vae: the checkpoint of step 30 does not fit (other beta); training starts "
        "afresh\n"
    ) in log
    assert summary_of(again)["beta"] == 2.0


def last_line(folder) -> str:
    lines = (folder / "train_vae.log").read_text().splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


FAULTS = {
    "a learning rate that is far too high": (
        {"learning_rate": 1e30},
        "train_vae: the loss is not a number at step …; lower train.learning_rate",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_loss_that_is_no_number_is_one_line_for_the_user(name, paths, tmp_path):
    settings, expected = FAULTS[name]
    with pytest.raises(SystemExit) as stop:
        train(tmp_path, paths, **settings)
    assert stop.value.code == 1
    assert is_said(expected, last_line(tmp_path).split(" ERROR ")[1])


def test_splits_are_read_by_name_and_the_model_starts_from_the_training_cells(paths):
    inputs = read_inputs(paths)
    for name, n in SPLITS.items():
        assert len(inputs.split(name)) == n
    train_cells = inputs.split("train")
    model = build_model(inputs, SETTINGS, NO_DESIGN, seed=1)
    assert float(model.log_common_depth) == pytest.approx(np.median(train_cells.log_offset))
    assert not np.isclose(np.median(train_cells.log_offset), np.median(inputs.data.log_offset))


def test_library_sizes_of_other_cells_are_refused(paths, tmp_path):
    sizes = pd.read_parquet(paths["library_size"]).iloc[::-1]
    sizes.to_parquet(tmp_path / "l.parquet")
    with pytest.raises(InputError, match="its cells are not those of counts"):
        read_inputs(paths | {"library_size": str(tmp_path / "l.parquet")})


def test_a_missing_gpu_is_one_line_for_the_user(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="device: cuda: no CUDA device is visible; set device"):
        device_or_error("cuda")


# ---- settings


def test_every_setting_of_the_training_has_an_effect_and_one_home():
    config = yaml.safe_load((ROOT / "config.yaml").read_text())["train"]
    homes = [*ARCHITECTURE, *PLAN, "precision", "covariates", "continuous_covariates"]
    homes.append("validation_cells")
    assert sorted(homes) == sorted(config)


def test_the_plan_is_the_config():
    plan = training_plan(SETTINGS, seed=5)
    assert plan.seed == 5
    for name in PLAN:
        assert getattr(plan, name) == SETTINGS[name]


@pytest.mark.parametrize(
    ("asked", "has", "taken"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("bfloat16", False, "bfloat16"),
        ("float32", True, "float32"),
    ],
)
def test_bfloat16_is_used_where_the_processor_has_it_or_where_asked_for(
    asked, has, taken, monkeypatch
):
    monkeypatch.setattr(train_vae, "has_bfloat16", lambda: has)
    plan = training_plan(SETTINGS | {"precision": asked}, seed=5)
    assert (plan.precision, plan.precision_is_auto) == (taken, asked == "auto")


def test_the_architecture_is_the_config(paths):
    changed = SETTINGS | {
        "likelihood": "zinb",
        "dispersion": "gene_cell",
        "decoder": "free",
        "library_size": "latent",
        "n_layers": 2,
        "normalization": "none",
        "skip": "film",
        "prior": "vamp",
        "encode_covariates": True,
    }
    inputs = read_inputs(paths)
    inputs = replace(inputs, cells=inputs.cells.assign(batch=["a", "b"] * 210))
    design = make_design(inputs.cells, changed | {"covariates": ["batch"]})
    model = build_model(inputs.with_design(design), changed, design, seed=1)
    for name in ARCHITECTURE:
        assert getattr(model.architecture, name) == changed[name]
    assert (model.architecture.n_covariates, model.architecture.n_batches) == (2, 2)
    assert model.architecture.n_genes == 40


def test_what_choose_likelihood_found_is_trained(paths, tmp_path):
    choice = tmp_path / "choice.json"
    choice.write_text('{"chosen": "poisson"}')
    run = train(tmp_path, paths, choice=str(choice), likelihood="auto", max_steps=30)
    assert summary_of(run)["architecture"]["likelihood"] == "poisson"
    weights = load_model(run["weights"], run["description"])[0].state_dict()
    assert "log_theta" not in weights


def test_without_a_warm_up_there_is_no_end_of_it(paths, tmp_path):
    run = train(tmp_path, paths, kl_warmup="constant", max_steps=20)
    assert summary_of(run)["warmup_ends_at_step"] == 0
    assert (pd.read_parquet(run["history"])["beta"] == 1.0).all()


# ---- held-out cells


def test_a_look_takes_some_held_out_cells_and_the_result_is_of_all(trained, paths, tmp_path):
    """Evenly spaced, so that all samples are among them; the training itself is the same."""
    run = train(tmp_path, paths, validation_cells=25)
    history, summary = pd.read_parquet(run["history"]), summary_of(run)
    model, _ = load_model(run["weights"], run["description"])
    validation = read_inputs(paths).split("validation")
    some = validation.take(np.linspace(0, 59, 25).astype(int))
    at_best = history.loc[history["step"] == summary["best_step"]].iloc[0]
    assert at_best["validation_elbo"] == cell_elbo(model, some, CPU).mean
    assert at_best["validation_elbo"] != cell_elbo(model, validation, CPU).mean
    assert summary["elbo"] == cell_elbo(model, validation, CPU, EVIDENCE_DRAWS).mean
    assert (summary["n_validation"], len(pd.read_parquet(run["validation"]))) == (60, 60)
    of_all = pd.read_parquet(trained["history"])
    looks = min(len(history), len(of_all))
    assert history["train_elbo"][:looks].equals(of_all["train_elbo"][:looks])


@pytest.mark.parametrize("validation_cells", [60, 61])
def test_a_look_takes_all_held_out_cells_where_they_are_few(
    trained, paths, tmp_path, validation_cells
):
    run = train(tmp_path, paths, validation_cells=validation_cells)
    for name, path in trained.items():
        assert run[name].read_bytes() == path.read_bytes(), name


def test_where_the_counts_lie_changes_no_byte(trained, paths, tmp_path, counts_stay):
    run = train(tmp_path, paths)
    for name, path in trained.items():
        assert run[name].read_bytes() == path.read_bytes(), name


# ---- covariates


def test_covariates_are_told_to_the_decoder_and_kept_with_the_model(paths, tmp_path):
    batch, age = np.array(["a", "b"] * 210), np.linspace(20, 80, 420)
    told = with_obs(paths, tmp_path, batch=batch, age=age)
    asked = {"covariates": ["batch"], "continuous_covariates": ["age"], "dispersion": "gene_batch"}
    run = train(tmp_path / "told", told, max_steps=30, **asked)
    model, inputs = read_model(run["weights"], run["description"], read_inputs(told))
    assert model.architecture.n_covariates == 3
    assert model.log_theta.shape == (2, 40)
    np.testing.assert_array_equal(inputs.data.covariates[:, 0], batch == "a")
    np.testing.assert_array_equal(inputs.data.batch, (batch == "b").astype(int))
    trained_age = age[:200]
    expected = (age - trained_age.mean()) / trained_age.std()
    np.testing.assert_allclose(inputs.data.covariates[:, 2], expected, rtol=1e-5)
    # Every split is told the same.
    parts = [inputs.split(name).covariates for name in SPLITS]
    np.testing.assert_array_equal(np.concatenate(parts), inputs.data.covariates)


def test_a_batch_effect_is_learned_by_the_decoder(paths, tmp_path):
    """A gene counted twenty times as much in one batch is so decoded, from the same z."""
    batch = np.array(["a", "b"] * 210)
    told = with_obs(paths, tmp_path, batch=batch)
    inputs = read_inputs(told)
    counts = inputs.data.counts[:].tolil()
    counts[batch == "b", 5] = counts[batch == "b", 5].toarray() * 20 + 20
    inputs = replace(inputs, data=replace(inputs.data, counts=counts.tocsr()))
    settings = SETTINGS | {"covariates": ["batch"], "max_steps": 200}
    design = make_design(inputs.cells, settings)
    inputs = inputs.with_design(design)
    model, plan = build_model(inputs, settings, design, 1), training_plan(settings, 1)
    params = SimpleNamespace(checkpoint=tmp_path / "c", code="")
    log = logging.getLogger("anomics")
    data = inputs.split("train"), inputs.split("validation")
    run_training(model, *data, plan, CPU, params, log, "x")
    batch_of = inputs.split("query").chunk(slice(0, 50), CPU)
    with torch.no_grad():
        q = model.encode(batch_of)
        as_a, as_b = (
            model.decode(q.mean, q, batch_of._replace(covariates=batch_of.covariates * 0 + row))
            for row in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        )
    ratio = (as_b.mean / as_a.mean).log().median(0).values
    assert ratio.argmax() == 5
    assert ratio[5] > np.log(5)


def test_a_batch_of_query_cells_alone_is_one_line_for_the_user(paths, tmp_path):
    batch = np.array(["a", "b"] * 210, dtype=object)
    batch[-3:] = "new"
    told = with_obs(paths, tmp_path, batch=batch)
    with pytest.raises(SystemExit):
        train(tmp_path / "told", told, covariates=["batch"])
    assert last_line(tmp_path / "told").endswith(
        "train.covariates: batch: new occurs in query cells and in no training cell, so the model "
        "cannot know its effect; bring reference cells of it, leave out those samples, or remove "
        "batch from the model"
    )


def test_a_covariate_that_no_file_has_is_one_line_for_the_user(paths, tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, paths, continuous_covariates=["age"])
    assert "train.continuous_covariates: age: no such column" in last_line(tmp_path)


# ---- cells that a model must not see


def with_other_cells(paths: dict, folder: Path, changed: np.ndarray) -> dict:
    """The same run with other counts and library sizes of some cells, their order reversed."""
    adata, sizes = ad.read_h5ad(paths["counts"]), pd.read_parquet(paths["library_size"])
    counts = adata.X.tolil()
    counts[changed] = 3 * adata.X[changed[::-1]] + 1 * (adata.X[changed] > 0)
    adata.X = counts.tocsr()
    written = write_counts(folder, adata)
    sizes.loc[changed, ["library_size"]] *= 7.0
    sizes.loc[changed, ["log_offset"]] += np.log(7.0)
    sizes.to_parquet(folder / "library_size.parquet")
    return written | {"library_size": str(folder / "library_size.parquet")}


def test_the_model_of_a_fold_never_sees_its_cells(paths, tmp_path):
    """Neither their counts nor their library sizes, though their split may be validation."""
    fold = np.arange(420) % 3 + 1
    folded = with_obs(paths, tmp_path / "in", fold=fold)
    changed = with_other_cells(folded, tmp_path / "other", np.flatnonzero(fold == 2))
    first = train(tmp_path / "a", folded, fold=2)
    other = train(tmp_path / "b", changed, fold=2)
    for name, path in first.items():
        assert other[name].read_bytes() == path.read_bytes(), name
    seen = train(tmp_path / "c", changed, fold=1)
    assert (
        seen["weights"].read_bytes()
        != train(tmp_path / "d", folded, fold=1)["weights"].read_bytes()
    )
    split = np.repeat(list(SPLITS), list(SPLITS.values()))
    n_train = ((split == "train") & (fold != 2)).sum()
    assert summary_of(first)["n_train"] == n_train < 200
    assert summary_of(first)["n_validation"] == ((split == "validation") & (fold != 2)).sum()


def test_a_held_out_group_is_not_seen_either(paths, tmp_path):
    """Cells of training, validation and calibration."""
    held = np.r_[3:50, 210:225, 300:320]
    table = tmp_path / "group.parquet"
    pd.DataFrame({"cell_id": [f"cell{i}" for i in held]}).to_parquet(table)
    changed = with_other_cells(paths, tmp_path / "other", held)
    first = train(tmp_path / "a", paths, held=str(table))
    other = train(tmp_path / "b", changed, held=str(table))
    for name, path in first.items():
        assert other[name].read_bytes() == path.read_bytes(), name
    assert summary_of(first)["n_train"] == 200 - 47
    assert summary_of(first)["n_validation"] == 60 - 15


def test_no_fold_and_no_group_hold_nothing_out(trained, paths, tmp_path):
    """A rule without the table gives an empty list."""
    again = train(tmp_path, paths, fold=None, held=[])
    assert again["weights"].read_bytes() == trained["weights"].read_bytes()


# ---- warnings


def test_a_collapse_is_named_with_its_cause_and_mend(paths, tmp_path):
    summary = summary_of(train(tmp_path, paths, beta=300.0, kl_warmup="constant"))
    assert summary["collapse"]["cause"] == "objective"
    assert summary["beta"] == 300.0
    (warning,) = (line for line in summary["warnings"] if "collapse" in line)
    assert warning.startswith("Posterior collapse: ")
    assert summary["collapse"]["mend"] in warning
    assert "beta is 300" in warning


COLLAPSED = Diagnosis("decoder", "it expects 3 times the scatter", "lower it")


@pytest.mark.parametrize(
    ("stopped_by", "active", "collapse", "expected"),
    [
        ("early stopping", 2, None, []),
        ("max_steps", 2, None, ["raise train.max_steps"]),
        ("early stopping", 0, COLLAPSED, ["the decoder: it expects 3 times the scatter; lower it"]),
        ("early stopping", 4, None, ["raise train.n_latent"]),
        ("early stopping", 4, COLLAPSED, ["Posterior collapse"]),
        ("max_steps", 4, None, ["raise train.max_steps", "raise train.n_latent"]),
    ],
)
def test_warnings_appear_when_they_should_and_not_else(stopped_by, active, collapse, expected):
    shape = Architecture(n_genes=40, n_latent=4, n_hidden=16, dropout=0.1)
    progress, plan = Progress(stopped_by=stopped_by), training_plan(SETTINGS, 1)
    found = training_warnings(progress, plan, shape, active, collapse)
    assert len(found) == len(expected)
    for warning, words in zip(found, expected, strict=True):
        assert words in warning
        assert "\n" not in warning and "; " in warning
    for skip in ("plain", "film"):
        more = training_warnings(progress, plan, replace(shape, skip=skip), active, collapse)
        assert more[:-1] == found
        assert f"skip connection ({skip})" in more[-1] and "set train.skip to none" in more[-1]


# ---- the log


def progress_at(step, stopped_by=""):
    row = {"step": step, "epoch": 1.0, "beta": 1.0, "train_elbo": -1.0, "validation_elbo": -2.0}
    return Progress(step=step, history=[row], kl=[[0.5, 0.25]], stopped_by=stopped_by)


def test_the_log_has_a_line_now_and_then_and_one_at_the_end(caplog):
    report = ProgressReport(logging.getLogger("anomics"), "train_vae", "seed1", 1000)
    with caplog.at_level(logging.INFO, "anomics"):
        for step in range(25, 1000, 25):
            report(progress_at(step))
        report(progress_at(1000, "max_steps"))
    steps = [int(line.split("step ")[1].split(",")[0]) for line in caplog.messages]
    assert steps == [25, 275, 525, 775, 1000]
    assert "held-out" in caplog.messages[0]


def test_of_two_trainings_on_a_terminal_one_has_a_bar_and_the_other_takes_over(monkeypatch):
    outer, inner = pty.openpty()
    termios.tcsetwinsize(outer, (24, 80))
    monkeypatch.setenv("TERM", "xterm")

    def drawn() -> str:
        stderr.flush()
        return os.read(outer, 65536).decode() if select.select([outer], [], [], 0)[0] else ""

    with open(inner, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        first, second = (
            ProgressReport(logging.getLogger("anomics"), "train_vae", f"seed{seed}", 1000)
            for seed in (1, 2)
        )
        first(progress_at(25))
        assert "train_vae seed1 |" in drawn()
        second(progress_at(25))
        assert drawn() == ""
        first(progress_at(300, "early stopping"))
        assert drawn().endswith("\r")
        second(progress_at(500))
        assert "train_vae seed2 |" in drawn()
        time.sleep(0.2)  # a bar is drawn ten times a second at most
        second(progress_at(525))
        assert "step 525 of at most 1000, ELBO -2.0" in drawn()
        second(progress_at(1000, "max_steps"))
    os.close(outer)


def test_the_kl_table_is_long():
    table = kl_table(progress_at(25))
    assert table.to_dict("list") == {"step": [25, 25], "dimension": [0, 1], "kl": [0.5, 0.25]}


def test_what_is_not_the_users_fault_keeps_its_traceback(paths, tmp_path, monkeypatch):
    inputs = read_inputs(paths)
    plan = replace(training_plan(SETTINGS, 1), max_steps=21)
    log = SimpleNamespace(info=lambda *args: 1 / 0)
    params = SimpleNamespace(checkpoint=tmp_path / "c", code="")
    model = build_model(inputs, SETTINGS, NO_DESIGN, 1)
    data = inputs.split("train"), inputs.split("validation")
    with pytest.raises(ZeroDivisionError):
        run_training(model, *data, plan, CPU, params, log, "x")
