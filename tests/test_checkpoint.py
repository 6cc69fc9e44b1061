"""The checkpoint file: written whole, gone on from where it fits, and said why where not."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import fill
from omics_vae import checkpoint as module
from omics_vae.checkpoint import Checkpoint, describe, remove_checkpoint
from simulated_counts import small_model
from small_training import PLAN, KilledError, kill_at, parts, run, same

LOOKS = [8, 16, 24, 32, 40, 48, 56, 60]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbs."""
    return run(tmp_path_factory.mktemp("whole") / "checkpoint")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "checkpoint"


@pytest.fixture
def killed(path) -> Path:
    """The checkpoint of step 32, of a run that was killed at its next look."""
    kill(path)
    return path


def kill(path: Path, plan=PLAN, **given) -> None:
    """A run that dies at its fifth look and leaves the checkpoint of the fourth, step 32."""
    with pytest.raises(KilledError):
        run(path, plan, kill_at(5), **given)


def rerun(path: Path, plan=PLAN, tag: str = "", **given) -> tuple:
    """The result of a run with what may lie at ``path``, the looks it took, what it said."""
    seen, said = [], []
    told = {"say": said.append, "tag": tag}
    result = run(path, plan, lambda progress: seen.append(progress.step), told=told, **given)
    return result, seen, said


# ---- what is said


def test_nothing_is_said_where_there_is_no_checkpoint(whole, path):
    result, seen, said = rerun(path)
    assert (seen, said) == (LOOKS, [])
    assert same(whole, result)


def test_a_run_says_from_which_step_it_goes_on(whole, killed):
    result, seen, said = rerun(killed)
    assert said == ["goes on from the checkpoint of step 32"]
    assert seen == LOOKS[4:]
    assert same(whole, result)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seed": 4}, "seed"),
        ({"kl_warmup": "cosine"}, "kl_warmup"),
        ({"max_steps": 64, "beta": 2.0, "patience": 3}, "beta, max_steps, patience"),
        ({"precision": "bfloat16"}, "precision"),
    ],
)
def test_a_checkpoint_of_another_plan_is_said_to_be_by_the_names_of_what_differs(
    tmp_path, killed, change, names
):
    plan = replace(PLAN, **change)
    result, seen, said = rerun(killed, plan)
    assert said == [
        f"the checkpoint of step 32 does not fit (other {names}); training starts afresh"
    ]
    assert seen[0] == 8
    assert same(result, run(tmp_path / "fresh", plan))


def test_so_is_one_of_another_model_code_or_of_other_cells(tmp_path, path):
    fitted, held_out = parts()
    fewer = fitted.take(slice(0, 190))
    for given, names in (
        ({"model": small_model(fitted, dropout=0.2)}, "dropout"),
        ({"model": small_model(held_out)}, "starting weights"),
        ({"model": small_model(fitted), "given": (fewer, held_out)}, "cells"),
        ({"model": small_model(fitted), "given": (fitted, held_out.take(slice(1, 60)))}, "cells"),
        ({"model": small_model(fitted, n_hidden=17)}, "n_hidden, starting weights"),
        ({"model": small_model(fitted), "tag": "edited"}, "code"),
    ):
        kill(path)
        _, seen, said = rerun(path, **given)
        assert said == [
            f"the checkpoint of step 32 does not fit (other {names}); training starts afresh"
        ]
        assert seen[0] == 8
    result, *_ = rerun(tmp_path / "fresh", model=small_model(held_out))
    kill(path)
    assert same(result, rerun(path, model=small_model(held_out))[0])


def with_metadata(path: Path, change) -> None:
    """The same tensors under changed metadata."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = change(file.metadata())
    save_file(tensors, path, metadata)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "its last byte lost": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"hello world"),
    "no metadata": lambda path: with_metadata(path, lambda said: None),
    "metadata torn": lambda path: with_metadata(
        path, lambda said: said | {"progress": said["progress"][:-9]}
    ),
    "no progress": lambda path: with_metadata(
        path, lambda said: {k: v for k, v in said.items() if k != "progress"}
    ),
    # As release 0.1 wrote it.
    "of another release": lambda path: with_metadata(
        path, lambda said: {"key": "3f" * 32, "progress": said["progress"]}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_cannot_be_read_is_said_to_be_and_a_fresh_start(whole, killed, damage):
    DAMAGE[damage](killed)
    result, seen, said = rerun(killed)
    assert said == [f"the checkpoint {killed} cannot be read; training starts afresh"]
    assert seen == LOOKS
    assert same(whole, result)


# ---- what it must agree with


def described(plan=PLAN, model=None, training=None, validation=None, tag="") -> dict:
    fitted, held_out = parts()
    cells = training or fitted, validation or held_out
    return describe(model or small_model(fitted), *cells, plan.as_described(), tag)


def differing(one: dict, other: dict) -> list[str]:
    """The names that a run described as ``one`` finds to differ in a checkpoint of ``other``."""
    # What a checkpoint says has been through its file.
    return Checkpoint(Path(), one, "float32")._differing(json.loads(json.dumps(other)))


def test_two_runs_of_the_same_agree():
    assert differing(described(), described()) == []


@pytest.mark.parametrize("name", asdict(PLAN))
def test_all_of_a_plan_that_changes_a_result_counts(name):
    named = {"kl_warmup": "cosine", "precision": "bfloat16", "precision_is_auto": True}
    value = named[name] if name in named else getattr(PLAN, name) + 1
    changed = replace(PLAN, **{name: value})
    expected = {"checkpoint_seconds": [], "precision_is_auto": ["precision"]}.get(name, [name])
    assert differing(described(), described(changed)) == expected


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("part", ["counts", "gene", "log_offset", "covariates", "batch"])
def test_every_number_of_the_cells_counts(part, is_training):
    cells = parts()[0 if is_training else 1]
    counts, elsewhere = cells.counts[:].copy(), cells.counts[:].copy()
    counts.data[0] += 1
    # The same number in the next gene, where the cell shows none: only its place is another.
    before_a_gap = np.flatnonzero(np.diff(elsewhere.indices[: elsewhere.indptr[1]]) > 1)[0]
    elsewhere.indices[before_a_gap] += 1
    offset = cells.log_offset.copy()
    offset[0] += 0.1
    change = {
        "counts": {"counts": counts},
        "gene": {"counts": elsewhere},
        "log_offset": {"log_offset": offset},
        "covariates": {"covariates": np.ones((len(cells), 1), dtype=np.float32)},
        "batch": {"batch": np.ones(len(cells), dtype=np.int64)},
    }[part]
    other = {"training" if is_training else "validation": replace(cells, **change)}
    assert differing(described(), described(**other)) == ["cells"]


def test_the_architecture_and_the_code_count():
    fitted, _ = parts()
    one = described()
    assert differing(one, described(tag="edited")) == ["code"]
    for change in ({"dropout": 0.2}, {"likelihood": "poisson"}, {"skip": "film"}):
        found = differing(one, described(model=small_model(fitted, **change)))
        assert set(found) - {"starting weights"} == set(change)


# ---- another machine


def scaled(by: float, name: str | None = None):
    """The model of the fixed start with its weights, or one tensor of them, a little larger."""
    model = small_model(parts()[0])
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if name in (None, key):
                tensor.mul_(1.0 + by)
    return model


def test_weights_that_differ_in_their_last_digits_are_the_same_start(whole, killed):
    """And what they were is of no account: all weights come from the checkpoint."""
    assert not same((scaled(1e-7), None), (scaled(0.0), None))
    result, seen, said = rerun(killed, model=scaled(1e-7))
    assert said == ["goes on from the checkpoint of step 32"]
    assert seen == LOOKS[4:]
    assert same(whole, result)


def test_weights_that_differ_by_a_thousandth_are_another_start(tmp_path, killed):
    result, seen, said = rerun(killed, model=scaled(1e-3))
    assert said == [
        "the checkpoint of step 32 does not fit (other starting weights); training starts afresh"
    ]
    assert seen == LOOKS
    assert same(result, run(tmp_path / "fresh", model=scaled(1e-3)))


@pytest.mark.parametrize("name", small_model(parts()[0]).state_dict())
def test_every_tensor_of_the_start_counts(name):
    one = described()
    tensor = small_model(parts()[0]).state_dict()[name]
    for by, expected in ((1e-7, []), (1e-3, ["starting weights"] if tensor.any() else [])):
        assert differing(one, described(model=scaled(by, name))) == expected
    moved = small_model(parts()[0])
    with torch.no_grad():
        moved.state_dict()[name].add_(1e-2)
    assert differing(one, described(model=moved)) == ["starting weights"]


@pytest.mark.parametrize(("before", "now"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_training_in_the_precision_of_its_machine_goes_on_in_that_of_another(path, before, now):
    auto = replace(PLAN, precision_is_auto=True)
    kill(path, replace(auto, precision=before))
    (model, progress), seen, said = rerun(path, replace(auto, precision=now))
    assert said == [f"goes on from the checkpoint of step 32, in {now} after {before}"]
    assert seen == LOOKS[4:]
    first, _ = run(path.with_name("first"), replace(auto, precision=before))
    second, _ = run(path.with_name("second"), replace(auto, precision=now))
    for other in (first, second):
        assert not same((model, progress), (other, progress)), "half in the one, half in the other"


def test_in_the_same_precision_it_goes_on_to_the_same_bytes(whole, path):
    auto = replace(PLAN, precision_is_auto=True)
    kill(path, auto)
    result, seen, said = rerun(path, auto)
    assert said == ["goes on from the checkpoint of step 32"]
    assert seen == LOOKS[4:]
    assert same(whole, result)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"precision": "float32"}, {"precision": "bfloat16"}),
        ({"precision": "bfloat16"}, {"precision": "float32"}),
        # Set by hand after auto, and the other way: who asks for one wants all of it in that one.
        ({"precision": "bfloat16", "precision_is_auto": True}, {"precision": "float32"}),
        ({"precision": "float32"}, {"precision": "bfloat16", "precision_is_auto": True}),
    ],
    ids=str,
)
def test_a_precision_set_by_hand_is_kept_to(path, before, now):
    kill(path, replace(PLAN, **before))
    result, seen, said = rerun(path, replace(PLAN, **now))
    assert said == [
        "the checkpoint of step 32 does not fit (other precision); training starts afresh"
    ]
    assert seen == LOOKS
    assert same(result, run(path.with_name("fresh"), replace(PLAN, **now)))


# ---- the writing


def test_a_kill_while_it_is_written_leaves_the_one_before(whole, path, monkeypatch):
    real, calls = module.save_file, []

    def dies_half_way(tensors, partial, metadata):
        calls.append(partial)
        if len(calls) == 3:
            Path(partial).write_bytes(b"half a file")
            raise KilledError
        real(tensors, partial, metadata)

    monkeypatch.setattr(module, "save_file", dies_half_way)
    with pytest.raises(KilledError):
        run(path)
    monkeypatch.undo()
    assert calls[0] != path
    result, seen, _ = rerun(path)
    assert same(whole, result)
    assert seen[0] == 24, "resumed from the second look"
    Path(calls[0]).write_bytes(b"half a file")
    remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_one_before_and_no_half_one(whole, small_disk):
    """A half one would keep the room that the next try needs."""
    path, filler = small_disk / "checkpoint", small_disk / "filler"
    kill(path)
    before = path.read_bytes()
    fill(filler)
    with pytest.raises(Exception, match="No space left on device"):
        run(path)
    assert path.read_bytes() == before
    assert {file.name for file in small_disk.iterdir()} == {"checkpoint", "filler"}
    filler.unlink()
    result, seen, _ = rerun(path)
    assert same(whole, result)
    assert seen == LOOKS[4:]
