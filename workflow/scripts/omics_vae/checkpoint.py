"""The state of a training on disk: written whole, gone on from exactly, or said not to fit."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from omics_vae.adam import Adam
from omics_vae.data import CountData
from omics_vae.model import VAE

# Two machines may start from weights that differ in the last digits of a sum; no two models differ
# by so little.
SAME_NORM = 1e-5

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file and what a run must agree with to go on from it.

    ``made_by``: what the result depends on, by name (:func:`describe`); ``say`` is told what became
    of a file that was found.
    """

    path: Path
    made_by: dict
    precision: str
    say: Callable[[str], None] = lambda text: None

    def write(self, model: VAE, optimizer: Adam, best: Weights, progress: dict) -> None:
        """Weights, best weights, Adam's moments and the progress in one file, in place at once."""
        groups = {"model": model.state_dict(), "best": best, "adam": optimizer.state()}
        tensors = {
            f"{group}.{name}": tensor.detach().cpu().contiguous()
            for group, state in groups.items()
            for name, tensor in state.items()
        }
        content = {
            "made_by": self.made_by,
            "precision": self.precision,
            "progress": progress,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(self.path)
        save_file(tensors, partial, {name: json.dumps(value) for name, value in content.items()})
        os.replace(partial, self.path)

    def read(self, model: VAE, optimizer: Adam, best: Weights) -> dict | None:
        """Restore what :meth:`write` wrote and return the progress; None where nothing fits."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                content = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
                progress = content["progress"]
                other = self._differing(content["made_by"])
                if other:
                    self.say(
                        f"the checkpoint of step {progress['step']} does not fit (other "
                        f"{', '.join(other)}); training starts afresh"
                    )
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, json.JSONDecodeError):
            # Cut short by a failing disk or a copy; an error would end the whole run.
            self.say(f"the checkpoint {self.path} cannot be read; training starts afresh")
            return None
        groups: dict[str, Weights] = {"model": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            group, rest = name.split(".", 1)
            groups[group][rest] = tensor
        model.load_state_dict(groups["model"])
        for name, tensor in groups["best"].items():
            best[name].copy_(tensor)
        optimizer.load(groups["adam"])
        before = content["precision"]
        changed = f", in {self.precision} after {before}" if before != self.precision else ""
        self.say(f"goes on from the checkpoint of step {progress['step']}{changed}")
        return progress

    def _differing(self, made_by: dict) -> list[str]:
        """The names under which a checkpoint's ``made_by`` is another."""
        names = sorted(self.made_by.keys() | made_by.keys())
        return [n for n in names if not _is_same(self.made_by.get(n), made_by.get(n))]


def describe(
    model: VAE, training: CountData, validation: CountData, plan: dict, tag: object = ""
) -> dict:
    """What the result of a training depends on: settings, code, cells, the weights it starts from.

    ``plan``: the settings by name; ``tag``: what stands for the code. Starting weights count by the
    norm of each tensor, so that a training can go on upon another machine.
    """
    cells = hashlib.sha256()
    for data in (training, validation):
        for array in (data.log_offset, data.covariates, data.batch):
            cells.update(np.ascontiguousarray(array))
        for _, x in data.counts.blocks():
            for array in (x.data, x.indices, x.indptr):
                cells.update(np.ascontiguousarray(array))
    norms = [float(tensor.double().norm()) for tensor in model.state_dict().values()]
    rest = {"code": tag, "cells": cells.hexdigest(), "starting weights": norms}
    # As it comes back from a file: JSON knows no tuples.
    return json.loads(json.dumps(vars(model.architecture) | plan | rest))


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return bool(np.allclose(one, other, rtol=SAME_NORM, atol=0.0))
    return one == other


def remove_checkpoint(path: Path) -> None:
    """Forget a checkpoint whose run has been stored, and one whose writing was cut short."""
    path.unlink(missing_ok=True)
    _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """Where a checkpoint is written before it is put in place."""
    return path.with_name(path.name + ".partial")
