"""Training: its schedule, its stop, what it keeps, and that a killed run loses nothing."""

import re
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from omics_vae import training
from omics_vae.adam import Adam
from omics_vae.checkpoint import remove_checkpoint
from omics_vae.collapse import active_units, mutual_information
from omics_vae.counts import Counts
from omics_vae.data import CountData, ShuffledBatches, choose_device
from omics_vae.inference import CellElbo, cell_elbo, embed
from omics_vae.training import InterruptionError, train
from simulated_counts import CPU, small_model
from small_training import PLAN, KilledError, kill_at, parts, run, same, simulated

# For the run that is killed from outside: long enough to be caught alive.
LONG = replace(PLAN, max_steps=160, validation_interval=10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbs."""
    return run(tmp_path_factory.mktemp("whole") / "checkpoint")


@pytest.mark.parametrize("shape", ["linear", "cosine", "cyclical"])
@pytest.mark.parametrize("warmup", [0, 1, 7, 20])
@pytest.mark.parametrize("beta", [1.0, 0.3, 7.0])
def test_the_warmup_ends_exactly_at_beta_and_stays(shape, warmup, beta):
    plan = replace(PLAN, kl_warmup=shape, kl_warmup_steps=warmup, beta=beta)
    weights = [plan.beta_at(step) for step in range(PLAN.max_steps + 1)]
    assert all(weight == beta for weight in weights[warmup:])
    assert all(0 <= weight <= beta for weight in weights[:warmup])
    assert [plan.is_final(step) for step in (warmup, 60)] == [True, True]
    if warmup:
        assert weights[0] == 0
        assert not plan.is_final(warmup - 1)
    if shape != "cyclical":
        assert all(weight < beta for weight in weights[:warmup])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", {0: 2.0, 5: 2.0, 20: 2.0}),
        ("linear", {0: 0.0, 1: 0.1, 5: 0.5, 10: 1.0, 19: 1.9, 20: 2.0}),
        ("cosine", {0: 0.0, 5: 1 - np.sqrt(0.5), 10: 1.0, 15: 1 + np.sqrt(0.5), 20: 2.0}),
        # Four cycles of five steps: 0, 0.8, 1.6, 2, 2.
        ("cyclical", {0: 0.0, 1: 0.8, 2: 1.6, 3: 2.0, 4: 2.0, 5: 0.0, 11: 0.8, 15: 0.0, 19: 2.0}),
    ],
)
def test_the_weight_of_the_kl_at_known_steps(shape, expected):
    plan = replace(PLAN, kl_warmup=shape, beta=2.0)
    found = {step: plan.beta_at(step) for step in expected}
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", ["linear", "cosine", "cyclical"])
@pytest.mark.parametrize("steps", [60, 61])
def test_a_warmup_that_would_outlast_training_is_refused(shape, steps):
    with pytest.raises(ValueError, match=f"warm-up of {steps} steps"):
        replace(PLAN, kl_warmup=shape, kl_warmup_steps=steps)
    replace(PLAN, kl_warmup="constant", kl_warmup_steps=steps)
    replace(PLAN, kl_warmup=shape, kl_warmup_steps=59)


def scripted_elbo(monkeypatch, values):
    """Held-out ELBOs as given, one an evaluation, then the last for ever; a KL of 1."""
    left = list(values)

    def elbo(model, data, device):
        value = left.pop(0) if len(left) > 1 else left[0]
        return CellElbo(np.full(60, value + 1.0), np.ones(60), np.full((60, 3), 1 / 3))

    monkeypatch.setattr(training, "cell_elbo", elbo)


@pytest.mark.parametrize("shape", ["linear", "cosine", "cyclical"])
def test_no_stop_before_the_warmup_is_over(tmp_path, monkeypatch, shape):
    # Falling from the first look on; looks at 8, 16 (warm-up), 24, 32, 40, ...
    scripted_elbo(monkeypatch, [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    _, progress = run(tmp_path / "c", replace(PLAN, patience=2, kl_warmup=shape))
    assert progress.stopped_by == "early stopping"
    assert progress.best_step == 24, "the better ELBOs under a lighter KL do not count"
    assert progress.best_objective == -3.0
    assert progress.step == 40


def test_patience_counts_looks_without_a_sufficient_improvement(tmp_path, monkeypatch):
    scripted_elbo(monkeypatch, [-9.0, -9.0, -5.0, -4.95, -4.8, -4.75, -4.72, -4.71])
    plan = replace(PLAN, patience=2, min_improvement=0.1, max_steps=200)
    _, progress = run(tmp_path / "c", plan)
    assert progress.best_step == 40
    assert progress.best_objective == pytest.approx(-4.8)
    assert progress.step == 56


def test_the_rate_falls_where_patience_ends_and_training_stops_after_the_last_time(
    tmp_path, monkeypatch
):
    # Looks at 8, 16, 24, ...; the warm-up ends at 20. New bests at 24 and, the rate fallen, at 56.
    scripted_elbo(monkeypatch, [-9.0, -9.0, -5.0, -5.0, -5.0, -5.0, -4.0])
    seen, step = [], Adam.step
    monkeypatch.setattr(Adam, "step", lambda self: seen.append(self.rate) or step(self))
    plan = replace(PLAN, patience=2, learning_rate_drops=2, max_steps=200)
    _, progress = run(tmp_path / "c", plan)
    rates = [(row["step"], row["learning_rate"] / plan.learning_rate) for row in progress.history]
    assert rates == [
        *((at, 1.0) for at in (8, 16, 24, 32, 40)),
        *((at, pytest.approx(0.3)) for at in (48, 56, 64, 72)),
        *((at, pytest.approx(0.09)) for at in (80, 88)),
    ]
    assert (progress.best_step, progress.step, progress.stopped_by) == (56, 88, "early stopping")
    # A look tells the rate of the steps before it.
    assert seen == [rate for _, rate in rates for _ in range(8)]


def test_a_run_killed_after_the_rate_fell_ends_as_if_it_never_was(tmp_path):
    plan = replace(LONG, patience=1, min_improvement=5.0, learning_rate_drops=3)
    whole = run(tmp_path / "whole", plan)
    assert whole[1].drops == 3
    fell = next(i for i, row in enumerate(whole[1].history) if row["learning_rate"] < 1e-3)
    with pytest.raises(KilledError):
        run(tmp_path / "c", plan, report=kill_at(fell + 2))
    assert same(whole, run(tmp_path / "c", plan))


def test_the_best_look_is_judged_by_the_objective_that_is_trained(tmp_path):
    _, progress = run(tmp_path / "c", replace(PLAN, beta=0.3, learning_rate=0.05, max_steps=150))
    objective = {
        row["step"]: row["validation_reconstruction"] - 0.3 * row["validation_kl"]
        for row in progress.history
        if row["step"] >= 20
    }
    assert progress.best_step == max(objective, key=objective.get)
    assert progress.best_objective == pytest.approx(max(objective.values()))
    by_elbo = {row["step"]: row["validation_elbo"] for row in progress.history}
    assert progress.best_objective > by_elbo[progress.best_step] + 0.5


def test_the_weights_kept_are_those_of_the_best_look_at_full_beta(tmp_path):
    fitted, held_out = parts()
    looks = {}
    model = small_model(fitted)

    def report(progress):
        looks[progress.step] = {n: t.clone() for n, t in model.state_dict().items()}

    plan = replace(PLAN, learning_rate=0.05, max_steps=150)
    model, progress = run(tmp_path / "c", plan, report, model)
    final = {row["step"]: row["validation_elbo"] for row in progress.history if row["beta"] == 1}
    assert progress.best_step == max(final, key=final.get)
    assert progress.best_step < progress.step, "the last look must not be the best one here"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, looks[progress.best_step][name])
    assert cell_elbo(model, held_out, CPU).mean == pytest.approx(progress.best_objective)
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
            "active_units",
            "mutual_information",
        ]
        assert row["epoch"] == row["step"] / 7  # ceil(200 / 32) steps
        assert row["beta"] == PLAN.beta_at(row["step"])
        assert row["validation_kl"] == pytest.approx(sum(kl))
        assert row["validation_elbo"] == pytest.approx(
            row["validation_reconstruction"] - row["validation_kl"]
        )
        # Both are the ELBO at beta = 1 of cells of one population.
        assert abs(row["train_elbo"] - row["validation_elbo"]) < 0.1 * abs(row["train_elbo"])


@pytest.mark.parametrize("architecture", [{}, {"prior": "mixture", "prior_components": 3}])
def test_the_last_row_tells_of_the_cells_what_their_posteriors_do(tmp_path, architecture):
    fitted, held_out = parts()
    model = small_model(fitted, **architecture)
    seen = []

    def report(progress):
        at = embed(model, held_out, CPU)
        elbo = cell_elbo(model, held_out, CPU)
        row = progress.history[-1]
        assert row["active_units"] == active_units(at.mean)
        assert row["mutual_information"] == mutual_information(at)
        assert row["validation_elbo"] == elbo.mean
        assert row["validation_kl"] == elbo.kl.mean()
        assert progress.kl[-1] == elbo.kl_dimensions.mean(0).tolist()
        seen.append(row["mutual_information"])

    run(tmp_path / "c", PLAN, report, model)
    assert seen[-1] > 0.5


def test_the_training_elbo_is_the_mean_since_the_last_look(whole, tmp_path):
    """Looking more often does not change the training itself."""
    _, often = run(tmp_path / "c", replace(PLAN, validation_interval=1))
    each = np.array([row["train_elbo"] for row in often.history])
    bounds = [0, *(row["step"] for row in whole[1].history)]
    for row, start, end in zip(whole[1].history, bounds[:-1], bounds[1:], strict=True):
        assert row["train_elbo"] == pytest.approx(each[start:end].mean(), rel=1e-9)


def test_every_step_of_every_seed_has_its_own_noise(tmp_path, monkeypatch):
    streams, real = [], training.fused.FusedStep.noise
    monkeypatch.setattr(
        training.fused.FusedStep,
        "noise",
        lambda self, n, *at: streams.append(at) or real(self, n, *at),
    )
    for seed in (3, 4):
        run(tmp_path / f"{seed}", replace(PLAN, seed=seed, validation_interval=60))
    assert streams == [(seed, step) for seed in (3, 4) for step in range(60)]


def test_every_step_by_autograd_too(tmp_path, monkeypatch):
    streams, real = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: streams.append(seed) or real(seed))
    model = small_model(simulated().data(slice(0, 200)), normalization="batch")
    streams.clear()
    for seed in (3, 4):
        run(tmp_path / f"{seed}", replace(PLAN, seed=seed, validation_interval=60), model=model)
    evaluations = [0, 0]  # the held-out ELBO's common random numbers
    assert len(set(streams)) == 2 * 60 + 1
    assert sorted(streams)[:2] == evaluations


def test_training_beats_the_null_model_on_cells_it_has_not_seen(tmp_path):
    fitted, held_out = parts()
    null = small_model(fitted).eval()
    with torch.no_grad():
        null.profile.weight.zero_()
        for head in (null.posterior_mean, null.posterior_log_variance):
            head.weight.zero_()
            head.bias.zero_()
    before = cell_elbo(null, held_out, CPU)
    assert before.kl.sum() == 0
    _, progress = run(tmp_path / "c", replace(PLAN, max_steps=300))
    assert progress.best_objective > before.mean + 3.0


def test_beta_traces_a_monotone_rate_and_distortion(tmp_path):
    """A dearer KL buys less of it, and less reconstruction: the points go down the curve."""
    found, (_, held_out) = [], parts()
    for beta in (0.3, 1.0, 3.0, 10.0):
        plan = replace(PLAN, beta=beta, max_steps=300, batch_size=64, validation_interval=50)
        model, _ = run(tmp_path / f"{beta}", plan, dropout=0.0)
        elbo = cell_elbo(model, held_out, CPU, 16)
        found.append((elbo.kl.mean(), elbo.reconstruction.mean()))
    rate, reconstruction = np.transpose(found)
    assert (np.diff(rate) < -0.3).all()
    assert (np.diff(reconstruction) < -0.3).all()
    # Each is the best of the four at its own price.
    price = np.array([0.3, 1.0, 3.0, 10.0])[:, None]
    objective = reconstruction - price * rate
    assert (objective.max(1) - np.diagonal(objective) < 0.5).all()


def gradients(model, plan) -> dict[str, torch.Tensor]:
    """Those of the first step, by name."""
    fitted, _ = parts()
    data, cells = ShuffledBatches(fitted, plan.batch_size, plan.seed)[0]
    training.autograd_step(model, data.chunk(cells, CPU), len(fitted), plan, 0)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def textbook_gradients(model, plan, penalty) -> dict[str, torch.Tensor]:
    """Of beta penalty(KL of each dimension, batch mean) - reconstruction - prior of theta / n."""
    stream = np.random.SeedSequence([plan.seed, 0]).generate_state(1, np.uint64)
    torch.manual_seed(int(stream[0] >> 1))
    fitted, _ = parts()
    data, cells = ShuffledBatches(fitted, plan.batch_size, plan.seed)[0]
    found = model(data.chunk(cells, CPU))
    loss = plan.beta * penalty(found.kl_dimensions.mean(0)) - found.reconstruction.mean()
    loss = loss + (model.log_theta / 0.5).square().sum() / 2 / len(fitted)
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("free_bits", [0.0, 0.02, 0.3, 100.0])
def test_free_bits_are_a_floor_of_the_price_of_each_dimension(free_bits):
    """sum_j max(KL_j, free_bits) of the batch means; at 0 the plain ELBO."""
    model = small_model(parts()[0], n_latent=4)
    with torch.no_grad():
        model.posterior_mean.weight.mul_(torch.tensor([0.0, 0.2, 1.0, 4.0])[:, None])
        model.posterior_mean.bias.mul_(torch.tensor([0.0, 0.2, 1.0, 4.0]))
        model.posterior_log_variance.weight.mul_(0.1)
        model.log_theta.fill_(0.7)
    plan = replace(PLAN, kl_warmup="constant", beta=2.0, free_bits=free_bits)
    found = gradients(model, plan)
    expected = textbook_gradients(model, plan, lambda kl: kl.clamp_min(free_bits).sum())
    plain = textbook_gradients(model, plan, lambda kl: kl.sum())
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)
    same_as_plain = torch.allclose(found["posterior_mean.weight"], plain["posterior_mean.weight"])
    assert same_as_plain == (free_bits == 0)


def test_a_dimension_under_its_free_bits_has_no_gradient_of_the_kl():
    """Where the decoder does not hear z, the KL is all there is."""
    model = small_model(parts()[0], dropout=0.0)
    with torch.no_grad():
        model.decoder[0].weight.zero_()
        model.posterior_mean.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    found = gradients(model, replace(PLAN, kl_warmup="constant", free_bits=4.0))
    plain = gradients(model, replace(PLAN, kl_warmup="constant"))
    for head in ("posterior_mean", "posterior_log_variance"):
        weight, price = found[f"{head}.weight"], plain[f"{head}.weight"]
        assert weight[:2].abs().max() < 1e-6
        assert price[:2].abs().max() > 1e-3
        torch.testing.assert_close(weight[2], price[2])


def test_free_bits_keep_a_dear_latent_space_in_use(tmp_path):
    plan = replace(PLAN, beta=30.0, max_steps=200, batch_size=64, validation_interval=50)
    _, collapsed = run(tmp_path / "a", plan)
    _, kept = run(tmp_path / "b", replace(plan, free_bits=0.5))
    assert max(collapsed.kl[-1]) < 0.02
    assert min(kept.kl[-1]) > 0.3
    assert max(kept.kl[-1]) < 0.7


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


@pytest.mark.parametrize(
    "architecture",
    [
        {"normalization": "batch"},
        {"prior": "mixture", "prior_components": 3},
        {"prior": "vamp", "prior_components": 2},
        {"library_size": "latent"},
        {"skip": "film", "likelihood": "zinb", "dispersion": "gene_cell"},
        {"likelihood": "gaussian", "n_layers": 0},
        {
            "normalization": "batch",
            "prior": "mixture",
            "prior_components": 3,
            "library_size": "latent",
            "n_layers": 2,
        },
    ],
    ids=str,
)
def test_every_architecture_resumes_to_the_same_bytes(tmp_path, architecture):
    plan = replace(PLAN, max_steps=40, kl_warmup="cyclical", free_bits=0.1)
    undisturbed = run(tmp_path / "whole", plan, **architecture)
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KilledError):
        run(checkpoint, plan, kill_at(3), **architecture)
    seen = []
    resumed = run(checkpoint, plan, lambda progress: seen.append(progress.step), **architecture)
    assert seen[0] == 24
    assert same(undisturbed, resumed)


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


def test_how_often_a_checkpoint_is_written_changes_nothing(whole, tmp_path):
    checkpoint, rare = tmp_path / "checkpoint", replace(PLAN, checkpoint_seconds=1e6)
    assert same(whole, run(checkpoint, rare))
    assert not checkpoint.exists()
    with pytest.raises(KilledError):
        run(checkpoint, report=kill_at(5))
    seen = []
    assert same(whole, run(checkpoint, rare, lambda progress: seen.append(progress.step)))
    assert seen[0] == 40


# ---- asked to stop

# Never by the clock: the only checkpoint is the one that is asked for.
RARE = replace(PLAN, checkpoint_seconds=1e6)


def stopping_after(n_steps: int) -> dict:
    """What tells ``train`` to stop once it has made so many steps."""
    steps = iter(range(1, n_steps + 1))
    return {"is_to_stop": lambda: next(steps) == n_steps}


def stopped_at(n_steps: int, checkpoint: Path, plan, **architecture) -> None:
    """Train so many steps more and have it stop there, with a checkpoint."""
    with pytest.raises(InterruptionError) as stopped:
        run(checkpoint, plan, told=stopping_after(n_steps), **architecture)
    assert re.fullmatch(r"a checkpoint of step \d+ is written", str(stopped.value))


@pytest.mark.parametrize("step", [1, 5, 8, 13, 20, 31, 47, 59, 60])
def test_a_run_asked_to_stop_at_any_step_ends_as_if_it_never_was(whole, tmp_path, step):
    """At a look, just before and after one, in the warm-up, at the last step."""
    checkpoint = tmp_path / "checkpoint"
    stopped_at(step, checkpoint, RARE)
    seen, said = [], []
    told = {"say": said.append}
    resumed = run(checkpoint, RARE, lambda progress: seen.append(progress.step), told=told)
    assert same(whole, resumed)
    assert seen == [at for at in (8, 16, 24, 32, 40, 48, 56, 60) if at > step]
    assert said == [f"goes on from the checkpoint of step {step}"]


def test_a_run_asked_to_stop_again_and_again_ends_as_if_it_never_was(whole, tmp_path):
    for _ in range(8):
        stopped_at(7, tmp_path / "checkpoint", RARE)
    assert same(whole, run(tmp_path / "checkpoint", RARE))


def test_a_run_stopped_between_two_falls_of_the_rate_ends_as_if_it_never_was(tmp_path):
    plan = replace(RARE, max_steps=160, patience=1, min_improvement=5.0, learning_rate_drops=3)
    undisturbed = run(tmp_path / "whole", plan)
    assert undisturbed[1].drops == 3
    looks = undisturbed[1].history
    fell = [a["step"] for a, b in pairwise(looks) if b["learning_rate"] < a["learning_rate"]]
    assert len(fell) == 3
    for step in (fell[0] - 1, fell[0], fell[0] + 1, fell[1], fell[1] + 5, fell[2] + 3):
        stopped_at(step, tmp_path / f"{step}", plan)
        assert same(undisturbed, run(tmp_path / f"{step}", plan)), step


@pytest.mark.parametrize(
    "architecture",
    [{"normalization": "batch"}, {"prior": "vamp", "prior_components": 2}, {"n_layers": 2}],
    ids=str,
)
def test_an_architecture_stopped_between_two_looks_resumes_to_the_same_bytes(
    tmp_path, architecture
):
    undisturbed = run(tmp_path / "whole", RARE, **architecture)
    stopped_at(29, tmp_path / "checkpoint", RARE, **architecture)
    assert same(undisturbed, run(tmp_path / "checkpoint", RARE, **architecture))


def test_a_fine_tuning_stopped_before_its_first_look_keeps_the_start_to_beat(tmp_path):
    ruinous = replace(RARE, learning_rate=0.5, max_steps=20, kl_warmup="constant")
    undisturbed = run(tmp_path / "whole", ruinous)
    assert undisturbed[1].best_step == 0
    stopped_at(3, tmp_path / "checkpoint", ruinous)
    assert same(undisturbed, run(tmp_path / "checkpoint", ruinous))


# ---- counts in memory or in their file


def parts_in_file(folder: Path) -> tuple[CountData, CountData]:
    """The same cells, whose counts are some rows of a file, in another order."""
    place = np.random.default_rng(1).permutation(300)[:260]
    counts = np.full((300, 30), 7, dtype=np.int32)
    counts[place] = simulated().counts.toarray()
    path = str(folder / "counts.h5ad")
    ad.AnnData(sp.csr_matrix(counts)).write_h5ad(path)
    both = CountData(Counts.open(path, 0.0).take(place), np.log(simulated().library_size))
    return both.take(slice(0, 200)), both.take(slice(200, 260))


@pytest.fixture
def small_buffers(monkeypatch):
    """Seven buffers of some 30 cells for the 200 of the training."""
    monkeypatch.setattr(ShuffledBatches, "BLOCKS", 4)
    monkeypatch.setattr(ShuffledBatches, "BLOCK_CELLS", 8)
    assert ShuffledBatches(parts()[0], 32, 1).n_buffers == 7


@pytest.mark.parametrize(
    "architecture",
    [{}, {"n_layers": 2, "likelihood": "zinb"}, {"normalization": "batch"}, {"prior": "vamp"}],
    ids=str,
)
def test_counts_in_a_file_train_the_same_bytes(tmp_path, small_buffers, architecture):
    """By the fused loops and by autograd."""
    stored = parts_in_file(tmp_path)
    of_memory = run(tmp_path / "a", **architecture)
    of_file = run(tmp_path / "b", given=stored, **architecture)
    assert len(of_file[1].history) == 8
    assert same(of_memory, of_file)


def test_a_training_goes_on_wherever_the_counts_lie(tmp_path, small_buffers):
    """A run that is killed may go on with another budget of memory."""
    stored, checkpoint = parts_in_file(tmp_path), tmp_path / "checkpoint"
    undisturbed = run(tmp_path / "whole")
    for first, second in ((parts(), stored), (stored, parts()), (stored, stored)):
        with pytest.raises(KilledError):
            run(checkpoint, report=kill_at(4), given=first)
        seen = []
        resumed = run(checkpoint, report=lambda p, seen=seen: seen.append(p.step), given=second)
        assert seen[0] == 32, "from the third look on, in the middle of an epoch"
        assert same(undisturbed, resumed)
        remove_checkpoint(checkpoint)


@pytest.mark.parametrize("warmup", [{"kl_warmup_steps": 0}, {"kl_warmup": "constant"}])
def test_fine_tuning_never_ends_below_where_it_began(tmp_path, warmup):
    fitted, held_out = parts()
    model = small_model(fitted)
    start = cell_elbo(model, held_out, CPU).mean
    ruinous = replace(PLAN, learning_rate=0.5, max_steps=20, **warmup)
    progress = train(model, fitted, held_out, ruinous, CPU, tmp_path / "c")
    assert progress.best_step == 0
    assert cell_elbo(model, held_out, CPU).mean == start


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = small_model(simulated().data(slice(0, 200)))
    with torch.no_grad():
        model.profile.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 0; lower train\.learning_rate"):
        run(tmp_path / "c", model=model)


def test_a_held_out_elbo_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    scripted_elbo(monkeypatch, [-5.0, float("nan")])
    with pytest.raises(FloatingPointError, match="held-out ELBO is not a number at step 16"):
        run(tmp_path / "c")


ALL_PARTS = {
    "n_layers": 2,
    "skip": "film",
    "likelihood": "zinb",
    "dispersion": "gene_cell",
    "library_size": "latent",
}


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {**ALL_PARTS, "normalization": "batch", "prior": "mixture", "prior_components": 3},
        {**ALL_PARTS, "prior": "vamp", "prior_components": 2},
        {"likelihood": "gaussian"},
    ],
    ids=["default", "mixture", "vamp", "gaussian"],
)
def test_weights_of_linear_layers_decay_like_a_fixed_prior_and_nothing_else(architecture):
    model = small_model(simulated().data(), **architecture)
    groups = training.make_optimizer(model, replace(PLAN, weight_decay=100.0), 50).groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    speed = {id(p): group["lr"] for group in groups for p in group["params"]}
    linear = {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    learned = {n: p for n, p in model.named_parameters() if n != "film.bias"}
    assert len(decay) == len(learned)
    for name, parameter in learned.items():
        assert decay[id(parameter)] == (2.0 if name in linear else 0.0), name
        is_scatter = name in ("log_theta", "log_gene_variance")
        assert speed[id(parameter)] == PLAN.learning_rate * (10 if is_scatter else 1), name


@pytest.mark.parametrize("architecture", [{"skip": "film"}, {"library_size": "latent"}])
def test_what_is_fixed_is_not_learned(tmp_path, architecture):
    fitted, _ = parts()
    before = small_model(fitted, **architecture).state_dict()
    model, _ = run(tmp_path / "c", **architecture)
    for name in ("film.bias", "size_prior", "log_common_depth", "log_headroom"):
        if name in before:
            assert torch.equal(model.state_dict()[name], before[name]), name
    assert not torch.equal(model.state_dict()["profile.weight"], before["profile.weight"])


@pytest.mark.parametrize("components", [1, 4])
def test_pseudo_cells_are_not_among_the_cells_of_batch_normalisation(tmp_path, components):
    """Their mean and variance are not those of cells, by which held-out cells are normalised."""
    architecture = {"normalization": "batch", "prior": "vamp", "prior_components": components}
    model = small_model(parts()[0], **architecture).train()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model.prior_of_z()
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, before[name]), name
    assert model.encoder.training
    _, progress = run(tmp_path / "c", replace(PLAN, max_steps=24), model=model)
    assert np.isfinite(progress.best_objective)


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cpu").type == "cpu"
