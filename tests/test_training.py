"""Training: its schedule, its stop, what it keeps, and that a killed run loses nothing."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omics_vae import training
from omics_vae.data import choose_device
from omics_vae.inference import HeldOut, held_out_elbo
from omics_vae.training import TrainingPlan, remove_checkpoint, train
from simulated_counts import CPU, Simulated, simulate, small_model

PLAN = TrainingPlan(
    max_steps=60,
    batch_size=32,
    learning_rate=5e-3,
    weight_decay=10.0,
    kl_warmup_steps=20,
    validation_interval=8,
    patience=50,
    min_improvement=0.0,
    checkpoint_seconds=0.0,
    seed=3,
)
# For the run that is killed from outside: long enough to be caught alive.
LONG = replace(PLAN, max_steps=240, validation_interval=10)


def simulated() -> Simulated:
    return simulate(260, 30, n_latent=2, seed=5, loading=1.0)


def run(checkpoint: Path, plan=PLAN, report=lambda progress: None, model=None):
    """A training from the fixed start; the model and what it saw."""
    torch.set_num_threads(1)
    everything = simulated()
    fitted, held_out = everything.data(slice(0, 200)), everything.data(slice(200, 260))
    model = model or small_model(fitted)
    return model, train(model, fitted, held_out, plan, CPU, checkpoint, report)


def same(one, other) -> bool:
    """Bit-identical weights and history."""
    (model, progress), (other_model, other_progress) = one, other
    state, other_state = model.state_dict(), other_model.state_dict()
    return progress == other_progress and all(
        torch.equal(state[name], other_state[name]) for name in state
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbs."""
    return run(tmp_path_factory.mktemp("whole") / "checkpoint")


class KilledError(Exception):
    """Stands for the signal that ends a process."""


def kill_at(evaluation: int):
    """A report callback that dies at the given evaluation of its process."""
    seen = []

    def report(progress):
        seen.append(progress.step)
        if len(seen) == evaluation:
            raise KilledError

    return report


@pytest.mark.parametrize("warmup", [0, 1, 7, 20])
def test_beta_rises_linearly_and_is_exactly_one_when_the_warmup_ends(warmup):
    plan = replace(PLAN, kl_warmup_steps=warmup)
    beta = [plan.beta(step) for step in range(PLAN.max_steps)]
    assert beta[warmup] == 1.0
    assert all(b == 1.0 for b in beta[warmup:])
    assert all(b < 1.0 for b in beta[:warmup])
    np.testing.assert_allclose(np.diff(beta[: warmup + 1]), 1 / max(warmup, 1))


def test_a_warmup_that_would_outlast_training_is_refused():
    with pytest.raises(ValueError, match="warm-up of 60 steps"):
        replace(PLAN, kl_warmup_steps=60)


def scripted_elbo(monkeypatch, values):
    """Held-out ELBOs as given, one an evaluation, then the last for ever."""
    left = list(values)

    def elbo(model, data, device):
        value = left.pop(0) if len(left) > 1 else left[0]
        return HeldOut(value, 1.0, value + 1.0, np.array([1.0, 0.0, 0.0]))

    monkeypatch.setattr(training, "held_out_elbo", elbo)


def test_no_stop_before_beta_is_one(tmp_path, monkeypatch):
    # Falling from the first look on; looks at 8, 16 (beta < 1), 24, 32, 40, ...
    scripted_elbo(monkeypatch, [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    _, progress = run(tmp_path / "c", replace(PLAN, patience=2))
    assert progress.stopped_by == "early stopping"
    assert progress.best_step == 24, "the better ELBOs at beta < 1 do not count"
    assert progress.best_elbo == -3.0
    assert progress.step == 40


def test_patience_counts_looks_without_a_sufficient_improvement(tmp_path, monkeypatch):
    scripted_elbo(monkeypatch, [-9.0, -9.0, -5.0, -4.95, -4.8, -4.75, -4.72, -4.71])
    plan = replace(PLAN, patience=2, min_improvement=0.1, max_steps=200)
    _, progress = run(tmp_path / "c", plan)
    assert (progress.best_step, progress.best_elbo) == (40, -4.8)
    assert progress.step == 56


def test_the_weights_kept_are_those_of_the_best_look_at_beta_one(tmp_path):
    everything = simulated()
    looks = {}
    model = small_model(everything.data(slice(0, 200)))

    def report(progress):
        looks[progress.step] = {n: t.clone() for n, t in model.state_dict().items()}

    plan = replace(PLAN, learning_rate=0.05, max_steps=150)
    model, progress = run(tmp_path / "c", plan, report, model)
    final = {row["step"]: row["validation_elbo"] for row in progress.history if row["beta"] == 1}
    assert progress.best_step == max(final, key=final.get)
    assert progress.best_step < progress.step, "the last look must not be the best one here"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, looks[progress.best_step][name])
    held_out = held_out_elbo(model, everything.data(slice(200, 260)), CPU)
    assert held_out.elbo == progress.best_elbo
    assert not model.training


def test_history_is_a_row_a_look_and_its_numbers_add_up(whole):
    _, progress = whole
    assert [row["step"] for row in progress.history] == [8, 16, 24, 32, 40, 48, 56, 60]
    assert progress.stopped_by == "max_steps"
    for row, kl in zip(progress.history, progress.kl, strict=True):
        assert list(row) == [
            "step",
            "epoch",
            "beta",
            "learning_rate",
            "train_elbo",
            "validation_elbo",
            "validation_reconstruction",
            "validation_kl",
        ]
        assert row["epoch"] == row["step"] / 7  # ceil(200 / 32) steps
        assert row["beta"] == PLAN.beta(row["step"])
        assert row["validation_kl"] == pytest.approx(sum(kl))
        assert row["validation_elbo"] == pytest.approx(
            row["validation_reconstruction"] - row["validation_kl"]
        )
        # Both are the ELBO at beta = 1 of cells of one population.
        assert abs(row["train_elbo"] - row["validation_elbo"]) < 0.1 * abs(row["train_elbo"])


def test_the_training_elbo_is_the_mean_since_the_last_look(whole, tmp_path):
    """Looking more often does not change the training itself."""
    _, often = run(tmp_path / "c", replace(PLAN, validation_interval=1))
    each = np.array([row["train_elbo"] for row in often.history])
    bounds = [0, *(row["step"] for row in whole[1].history)]
    for row, start, end in zip(whole[1].history, bounds[:-1], bounds[1:], strict=True):
        assert row["train_elbo"] == pytest.approx(each[start:end].mean(), rel=1e-9)


def test_every_step_of_every_seed_has_its_own_noise(tmp_path, monkeypatch):
    streams, real = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: streams.append(seed) or real(seed))
    model = small_model(simulated().data(slice(0, 200)))
    streams.clear()
    for seed in (3, 4):
        run(tmp_path / f"{seed}", replace(PLAN, seed=seed, validation_interval=60), model=model)
    evaluations = [0, 0]  # the held-out ELBO's common random numbers
    assert len(set(streams)) == 2 * 60 + 1
    assert sorted(streams)[:2] == evaluations


def test_training_beats_the_null_model_on_cells_it_has_not_seen(tmp_path):
    everything = simulated()
    null = small_model(everything.data(slice(0, 200))).eval()
    with torch.no_grad():
        null.logits.weight.zero_()
        null.posterior_mean.weight.zero_()
        null.posterior_mean.bias.zero_()
        null.posterior_log_variance.weight.zero_()
        null.posterior_log_variance.bias.zero_()
    before = held_out_elbo(null, everything.data(slice(200, 260)), CPU)
    assert before.kl.sum() == 0
    _, progress = run(tmp_path / "c", replace(PLAN, max_steps=300))
    assert progress.best_elbo > before.elbo + 3.0


def test_a_seed_decides_the_bytes(whole, tmp_path):
    assert same(whole, run(tmp_path / "a"))
    torch.manual_seed(1234)  # whatever was drawn before
    model = small_model(simulated().data(slice(0, 200)))
    torch.rand(17)
    assert same(whole, run(tmp_path / "b", model=model))
    other = run(tmp_path / "c", replace(PLAN, seed=4))
    assert not same(whole, other)


@pytest.mark.parametrize("evaluation", range(1, 9))
def test_a_run_killed_at_any_look_ends_as_if_it_never_was(whole, tmp_path, evaluation):
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KilledError):
        run(checkpoint, report=kill_at(evaluation))
    assert checkpoint.exists() == (evaluation > 1)
    assert same(whole, run(checkpoint))


def test_a_run_killed_again_and_again_ends_as_if_it_never_was(whole, tmp_path):
    checkpoint, deaths = tmp_path / "checkpoint", 0
    while True:
        try:
            result = run(checkpoint, report=kill_at(2))
            break
        except KilledError:
            deaths += 1
    assert deaths == 7
    assert same(whole, result)


def test_a_finished_run_is_not_trained_again(whole, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    run(checkpoint)
    assert same(whole, run(checkpoint, report=kill_at(1)))
    remove_checkpoint(checkpoint)
    assert list(tmp_path.iterdir()) == []
    remove_checkpoint(checkpoint)


CHILD = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_training import LONG, run
run(Path(sys.argv[1]), LONG, lambda progress: print(progress.step, flush=True))
"""


def test_a_process_killed_between_two_looks_loses_nothing(tmp_path):
    tests = Path(__file__).resolve().parent
    path = [str(tests), str(tests.parent / "workflow" / "scripts")]
    checkpoint = tmp_path / "checkpoint"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(path=path), str(checkpoint)],
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(4):
        assert child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    assert checkpoint.exists()
    seen = []
    resumed = run(checkpoint, LONG, lambda progress: seen.append(progress.step))
    assert seen[0] > 30, "it went on where it was"
    assert same(resumed, run(tmp_path / "fresh", LONG))


def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(whole, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    real, calls = training.save_file, []

    def dies_half_way(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half a file")
            raise KilledError
        real(tensors, path, metadata)

    monkeypatch.setattr(training, "save_file", dies_half_way)
    with pytest.raises(KilledError):
        run(checkpoint)
    monkeypatch.undo()
    assert calls[0] != checkpoint
    assert Path(calls[0]).read_bytes() == b"half a file"
    seen = []
    assert same(whole, run(checkpoint, report=lambda progress: seen.append(progress.step)))
    assert seen[0] == 24, "resumed from the second look"
    Path(calls[0]).write_bytes(b"half a file")
    remove_checkpoint(checkpoint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "no metadata"])
def test_a_checkpoint_that_cannot_be_read_is_a_fresh_start(whole, tmp_path, damage):
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KilledError):
        run(checkpoint, report=kill_at(4))
    content = checkpoint.read_bytes()
    if damage == "no metadata":
        training.save_file({"a": torch.zeros(1)}, checkpoint)
    else:
        spoilt = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello world"}
        checkpoint.write_bytes(spoilt[damage])
    seen = []
    assert same(whole, run(checkpoint, report=lambda progress: seen.append(progress.step)))
    assert seen[0] == 8


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"learning_rate": 1e-3}, {"kl_warmup_steps": 10}, {"batch_size": 64}]
)
def test_the_checkpoint_of_another_plan_is_ignored(tmp_path, change):
    checkpoint, plan = tmp_path / "checkpoint", replace(PLAN, **change)
    with pytest.raises(KilledError):
        run(checkpoint, report=kill_at(5))
    assert same(run(checkpoint, plan), run(tmp_path / "fresh", plan))


def test_how_often_a_checkpoint_is_written_changes_nothing(whole, tmp_path):
    checkpoint, rare = tmp_path / "checkpoint", replace(PLAN, checkpoint_seconds=1e6)
    assert same(whole, run(checkpoint, rare))
    assert not checkpoint.exists()
    with pytest.raises(KilledError):
        run(checkpoint, report=kill_at(5))
    seen = []
    assert same(whole, run(checkpoint, rare, lambda progress: seen.append(progress.step)))
    assert seen[0] == 40


def test_fine_tuning_never_ends_below_where_it_began(tmp_path):
    everything = simulated()
    fitted, held_out = everything.data(slice(0, 200)), everything.data(slice(200, 260))
    model = small_model(fitted)
    start = held_out_elbo(model, held_out, CPU).elbo
    ruinous = replace(PLAN, kl_warmup_steps=0, learning_rate=0.5, max_steps=20)
    progress = train(model, fitted, held_out, ruinous, CPU, tmp_path / "c")
    assert progress.best_step == 0
    assert held_out_elbo(model, held_out, CPU).elbo == start


def test_the_checkpoint_of_other_cells_or_another_model_is_ignored(tmp_path):
    checkpoint, everything = tmp_path / "checkpoint", simulated()
    fitted, held_out = everything.data(slice(0, 200)), everything.data(slice(200, 260))
    keys = {training.fingerprint(small_model(fitted), fitted, held_out, PLAN)}
    more = fitted.counts.copy()
    more.data[0] += 1
    resized = fitted.log_offset.copy()
    resized[0] += 0.1
    for cells in (replace(fitted, counts=more), replace(fitted, log_offset=resized)):
        keys.add(training.fingerprint(small_model(fitted), cells, held_out, PLAN))
        keys.add(training.fingerprint(small_model(fitted), fitted, cells, PLAN))
    keys.add(training.fingerprint(small_model(fitted, dropout=0.2), fitted, held_out, PLAN))
    keys.add(training.fingerprint(small_model(held_out), fitted, held_out, PLAN))
    keys.add(training.fingerprint(small_model(fitted), fitted, held_out, PLAN, "other code"))
    assert len(keys) == 8
    with pytest.raises(KilledError):
        run(checkpoint, report=kill_at(5))
    model, fresh = small_model(held_out), small_model(held_out)
    assert same(run(checkpoint, model=model), run(tmp_path / "fresh", model=fresh))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = small_model(simulated().data(slice(0, 200)))
    with torch.no_grad():
        model.logits.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 0; lower train\.learning_rate"):
        run(tmp_path / "c", model=model)


def test_a_held_out_elbo_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    scripted_elbo(monkeypatch, [-5.0, float("nan")])
    with pytest.raises(FloatingPointError, match="held-out ELBO is not a number at step 16"):
        run(tmp_path / "c")


def test_weights_decay_like_a_fixed_prior_and_vectors_do_not():
    model = small_model(simulated().data())
    groups = training._optimizer(model, replace(PLAN, weight_decay=100.0), 50).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        matrix = name.endswith("weight") and parameter.ndim == 2
        assert decay[id(parameter)] == (2.0 if matrix else 0.0), name


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cpu").type == "cpu"
