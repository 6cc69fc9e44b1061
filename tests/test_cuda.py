"""The same model on a GPU: what it is given, what it says, what it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from omics_vae.data import DeviceData
from omics_vae.inference import cell_elbo, embed
from omics_vae.model import load_model, save_model
from omics_vae.training import train
from simulated_counts import CPU, small_model
from small_training import PLAN, parts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
CUDA = torch.device("cuda")
KINDS = [{"likelihood": "nb"}, {"likelihood": "zinb"}, {"prior": "mixture"}, {"n_layers": 0}]


def test_batches_made_on_the_device_are_those_of_the_host():
    fitted, _ = parts()
    fitted = fitted.take(np.arange(0, 200, 3))
    cells = np.array([5, 0, 66, 31])
    for there, here in zip(
        DeviceData(fitted, CUDA).chunk(cells), fitted.chunk(cells, CPU), strict=True
    ):
        assert there.device.type == "cuda"
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", KINDS)
def test_posteriors_and_elbo_are_those_of_the_cpu(architecture):
    fitted, held_out = parts()
    model = small_model(fitted, **architecture)
    here, elbo_here = embed(model, held_out, CPU), cell_elbo(model, held_out, CPU, draws=200)
    there, elbo_there = embed(model, held_out, CUDA), cell_elbo(model, held_out, CUDA, draws=200)
    for name in ("mean", "variance"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-3, atol=1e-5)
    # The draws of z are others.
    assert elbo_there.mean == pytest.approx(elbo_here.mean, abs=0.1)


@pytest.mark.parametrize("architecture", KINDS)
def test_training_ends_where_it_does_on_the_cpu(tmp_path, architecture):
    fitted, held_out = parts()
    plan = replace(PLAN, max_steps=300, patience=6)
    found = {}
    for device in (CPU, CUDA):
        model = small_model(fitted, **architecture)
        train(model, fitted, held_out, plan, device, tmp_path / device.type)
        found[device.type] = cell_elbo(model, held_out, device, draws=50).mean
    start = cell_elbo(small_model(fitted, **architecture), held_out, CPU, draws=50).mean
    assert found["cuda"] > start + 1.0
    assert found["cuda"] == pytest.approx(found["cpu"], abs=0.5)


def test_a_model_trained_on_the_device_is_read_on_the_host(tmp_path):
    fitted, held_out = parts()
    model = small_model(fitted)
    train(model, fitted, held_out, PLAN, CUDA, tmp_path / "checkpoint")
    files = tmp_path / "m.safetensors", tmp_path / "m.json"
    save_model(model, *files, [f"G{g}" for g in range(30)])
    read, _ = load_model(*files)
    there, here = embed(model, held_out, CUDA), embed(read, held_out, CPU)
    np.testing.assert_allclose(there.mean, here.mean, rtol=1e-3, atol=1e-5)
