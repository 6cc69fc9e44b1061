"""Adam against torch's own, step by step, and through a checkpoint."""

import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from omics_vae.adam import Adam


def parameters() -> list[torch.nn.Parameter]:
    """Of several shapes; one laid out by columns, as the fused step has its first layer."""
    torch.manual_seed(3)
    made = [torch.randn(7, 5), torch.randn(5), torch.randn(4, 6).T, torch.randn(())]
    return [torch.nn.Parameter(values) for values in made]


def groups(params: list, decay: float) -> list[dict]:
    return [
        {"params": params[:2], "lr": 1e-2, "weight_decay": decay},
        {"params": [], "lr": 1.0, "weight_decay": 1.0},
        {"params": params[2:], "lr": 1e-1, "weight_decay": 0.0},
    ]


def give_gradients(params: list, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_it_moves_as_adamw_of_torch(decay):
    ours, theirs = parameters(), parameters()
    adam = Adam(groups(ours, decay))
    reference = torch.optim.AdamW([g for g in groups(theirs, decay) if g["params"]])
    for step in range(20):
        for params, optimizer in ((ours, adam), (theirs, reference)):
            give_gradients(params, step)
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert ours[2].stride() == theirs[2].stride() == (1, 6)


def test_its_state_continues_to_the_bit():
    whole, cut = parameters(), parameters()
    adam, before = Adam(groups(whole, 0.1)), Adam(groups(cut, 0.1))
    for step in range(5):
        for params, optimizer in ((whole, adam), (cut, before)):
            give_gradients(params, step)
            optimizer.step()
    # A file holds them in rows.
    state = {name: tensor.clone().contiguous() for name, tensor in before.state().items()}
    after = Adam(groups(cut, 0.1))
    after.load(state)
    for step in range(5, 9):
        for params, optimizer in ((whole, adam), (cut, after)):
            give_gradients(params, step)
            optimizer.step()
    for one, other in zip(whole, cut, strict=True):
        assert torch.equal(one, other)


def test_a_parameter_without_a_gradient_stays():
    params = parameters()
    give_gradients(params, 0)
    params[1].grad = None
    before = params[1].clone()
    Adam(groups(params, 0.5)).step()
    assert torch.equal(params[1], before)


def test_training_does_not_import_torchs_compiler():
    code = """
import sys, torch
sys.path.insert(0, "workflow/scripts")
from omics_vae.adam import Adam
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
Adam([dict(params=[p], lr=0.1, weight_decay=0.0)]).step()
print(float(p[0]), "torch._dynamo" in sys.modules)
"""
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert float(found[0]) == pytest.approx(0.9) and found[1] == "False"
