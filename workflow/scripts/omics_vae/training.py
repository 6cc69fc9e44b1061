"""Training: optimiser, KL warm-up, early stopping on the held-out ELBO, exact resume.

Time is counted in optimiser steps, not epochs: a warm-up of 400 epochs may never end on a large
data set and be over at once on a small one. All that is random is a function of (seed, step), so a
checkpoint needs no random state and a resumed run continues as if it had never stopped.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from omics_vae.data import CountData, ShuffledBatches
from omics_vae.inference import held_out_elbo
from omics_vae.model import VAE

# log theta has a range of many units to cross, a weight a fraction of one.
LOG_THETA_SPEED = 10.0


@dataclass(frozen=True)
class TrainingPlan:
    """How to train. Steps are optimiser steps; see config.yaml for the reason of each default."""

    max_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    kl_warmup_steps: int
    validation_interval: int
    patience: int
    min_improvement: float
    checkpoint_seconds: float
    seed: int

    def __post_init__(self):
        if self.kl_warmup_steps >= self.max_steps:
            raise ValueError(
                f"the KL warm-up of {self.kl_warmup_steps} steps would end after training "
                f"({self.max_steps} steps)"
            )

    def beta(self, step: int) -> float:
        """Weight of the KL term at a step: linear from 0 to 1 over the warm-up, then 1."""
        return min(1.0, step / self.kl_warmup_steps) if self.kl_warmup_steps else 1.0


@dataclass
class Progress:
    """What a run has seen so far: written into the checkpoint, returned at the end."""

    step: int = 0
    best_step: int = -1
    best_elbo: float = -math.inf
    train_elbo_sum: float = 0.0
    train_steps: int = 0
    stopped_by: str = ""
    history: list[dict] = field(default_factory=list)
    kl: list[list[float]] = field(default_factory=list)


def train(
    model: VAE,
    training: CountData,
    validation: CountData,
    plan: TrainingPlan,
    device: torch.device,
    checkpoint: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    tag: str = "",
) -> Progress:
    """Maximise the ELBO of ``training``; leave in ``model`` the weights of the best held-out ELBO.

    Early stopping counts only from the step at which beta has reached 1: an ELBO under a lighter KL
    term is not comparable with the final one. It stops when ``patience`` evaluations in a row have
    not improved the best by ``min_improvement`` nats a cell; a smaller gain is no new best.

    A checkpoint is written to ``checkpoint`` every ``checkpoint_seconds`` and removed by
    :func:`remove_checkpoint` once the caller has stored the result. One that was written by another
    plan, model, data set or ``tag`` (a hash of the code, say), or that cannot be read, is ignored.

    Raises ``FloatingPointError`` when the loss or the held-out ELBO is no longer a number.
    """
    model.to(device)
    optimizer = _optimizer(model, plan, len(training))
    batches = ShuffledBatches(len(training), plan.batch_size, plan.seed)
    key = fingerprint(model, training, validation, plan, tag)
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    progress = _load_checkpoint(checkpoint, key, model, optimizer, best)
    if progress is None:
        progress = Progress()
        if plan.beta(0) == 1.0:  # fine-tuning: the start is a model to beat
            progress.best_step = 0
            progress.best_elbo = held_out_elbo(model, validation, device).elbo
    written = time.monotonic()
    while not progress.stopped_by:
        _step(model, optimizer, training, batches, plan, progress, device)
        if progress.step % plan.validation_interval == 0 or progress.step == plan.max_steps:
            _evaluate(model, validation, plan, progress, best, batches, device)
            report(progress)
            if time.monotonic() - written >= plan.checkpoint_seconds:
                _save_checkpoint(checkpoint, key, model, optimizer, best, progress)
                written = time.monotonic()
    model.load_state_dict(best)
    model.eval()
    return progress


def _optimizer(model: VAE, plan: TrainingPlan, n_cells: int) -> torch.optim.Optimizer:
    """Adam; weight matrices decay by ``weight_decay / n_cells``, the pull of a fixed prior.

    A prior counts once and the likelihood once a cell, so the decay that suits 500 cells would
    flatten 50,000. Biases, norms and theta do not decay: the null profile is not a complexity.
    """
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2 and p is not model.log_theta]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay / n_cells},
        {"params": vectors, "weight_decay": 0.0},
        {
            "params": [model.log_theta],
            "weight_decay": 0.0,
            "lr": LOG_THETA_SPEED * plan.learning_rate,
        },
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate)


def _step(model, optimizer, training, batches, plan, progress, device) -> None:
    """One optimiser step."""
    # The stream of dropout and of z is a function of (seed, step).
    stream = np.random.SeedSequence([plan.seed, progress.step]).generate_state(1, np.uint64)
    torch.manual_seed(int(stream[0] >> 1))
    model.train()
    x, log_offset = training.batch(batches[progress.step], device)
    parts = model(x, log_offset)
    kl = parts.kl.sum(-1).mean()
    reconstruction = parts.reconstruction.mean()
    prior = model.log_theta_prior() / len(training)
    loss = plan.beta(progress.step) * kl - reconstruction - prior
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss is not a number at step {progress.step}; lower train.learning_rate"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    progress.step += 1
    progress.train_elbo_sum += float(reconstruction.detach() - kl.detach())
    progress.train_steps += 1


def _evaluate(model, validation, plan, progress, best, batches, device) -> None:
    """Record the held-out ELBO, keep the best weights, decide whether to stop."""
    held_out = held_out_elbo(model, validation, device)
    if not math.isfinite(held_out.elbo):
        raise FloatingPointError(
            f"the held-out ELBO is not a number at step {progress.step}; lower train.learning_rate"
        )
    beta = plan.beta(progress.step)
    progress.history.append(
        {
            "step": progress.step,
            "epoch": progress.step / batches.steps_per_epoch,
            "beta": beta,
            "learning_rate": plan.learning_rate,
            "train_elbo": progress.train_elbo_sum / progress.train_steps,
            "validation_elbo": held_out.elbo,
            "validation_reconstruction": held_out.reconstruction,
            "validation_kl": float(held_out.kl.sum()),
        }
    )
    progress.kl.append([float(value) for value in held_out.kl])
    progress.train_elbo_sum, progress.train_steps = 0.0, 0
    if beta == 1.0:
        if held_out.elbo > progress.best_elbo + plan.min_improvement or progress.best_step < 0:
            progress.best_elbo, progress.best_step = held_out.elbo, progress.step
            for name, tensor in model.state_dict().items():
                best[name].copy_(tensor)
        waited = (progress.step - progress.best_step) / plan.validation_interval
        if waited >= plan.patience:
            progress.stopped_by = "early stopping"
    if progress.step >= plan.max_steps:
        progress.stopped_by = progress.stopped_by or "max_steps"


def fingerprint(
    model: VAE, training: CountData, validation: CountData, plan: TrainingPlan, tag: str = ""
) -> str:
    """What a checkpoint must agree with to be resumed: plan, architecture, weights, data, tag."""
    digest = hashlib.sha256()
    # How often to write a checkpoint changes no result.
    settings = {k: v for k, v in asdict(plan).items() if k != "checkpoint_seconds"}
    digest.update(json.dumps([tag, settings, asdict(model.architecture)], sort_keys=True).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    for data in (training, validation):
        for array in (data.counts.data, data.counts.indices, data.counts.indptr, data.log_offset):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _save_checkpoint(path: Path, key: str, model, optimizer, best, progress: Progress) -> None:
    """Weights, best weights, Adam's moments and the progress in one file, in place at once."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": tensor for name, tensor in state.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    save_file(tensors, partial, {"key": key, "progress": json.dumps(asdict(progress))})
    os.replace(partial, path)


def _load_checkpoint(path: Path, key: str, model, optimizer, best) -> Progress | None:
    """Restore a checkpoint that fits, else None."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        # Cut short by a failing disk or a copy; starting afresh costs time, stopping the whole run.
        return None
    groups: dict[str, dict] = {"model": {}, "best": {}, "adam": {}}
    for name, tensor in tensors.items():
        group, rest = name.split(".", 1)
        groups[group][rest] = tensor
    model.load_state_dict(groups["model"])
    for name, tensor in groups["best"].items():
        best[name].copy_(tensor)
    state: dict[int, dict] = {}
    for name, tensor in groups["adam"].items():
        index, moment = name.split(".", 1)
        state.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return Progress(**json.loads(metadata["progress"]))


def remove_checkpoint(path: Path) -> None:
    """Forget a checkpoint whose run has been stored, and one whose writing was cut short."""
    path.unlink(missing_ok=True)
    _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """Where a checkpoint is written before it is put in place."""
    return path.with_name(path.name + ".partial")
