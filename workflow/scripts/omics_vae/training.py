"""Training: optimiser, KL warm-up, early stopping on the held-out ELBO, exact resume.

Time is counted in optimiser steps, not epochs: a warm-up of 400 epochs may never end on a large
data set and be over at once on a small one. All that is random is a function of (seed, step), so a
checkpoint needs no random state and a resumed run continues as if it had never stopped.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from omics_vae import fused
from omics_vae.adam import Adam
from omics_vae.checkpoint import Checkpoint, describe
from omics_vae.collapse import active_units, mutual_information
from omics_vae.data import Batch, CountData, DeviceData, ShuffledBatches
from omics_vae.fused import StepLoss
from omics_vae.inference import cell_elbo, embed
from omics_vae.model import VAE

# What is left of the learning rate when it falls: as a tenth, but in two steps.
RATE_LEFT = 0.3
# A log dispersion has a range of many units to cross, a weight a fraction of one.
NOISE_PARAMETERS = ("log_theta", "log_gene_variance")
NOISE_SPEED = 10.0


@dataclass(frozen=True)
class TrainingPlan:
    """How to train. Steps are optimiser steps; see config.yaml for the reason of each default."""

    max_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    beta: float
    kl_warmup: str  # constant, linear, cosine, cyclical
    kl_warmup_steps: int
    kl_cycles: int
    free_bits: float
    validation_interval: int
    patience: int
    min_improvement: float
    checkpoint_seconds: float
    seed: int
    learning_rate_drops: int = 0  # times that the rate falls before training stops
    precision: str = "float32"  # of the output layer's products; or bfloat16 (fused.py)
    precision_is_auto: bool = False  # the machine's choice: another one may go on in its own

    def __post_init__(self):
        if self.kl_warmup != "constant" and self.kl_warmup_steps >= self.max_steps:
            raise ValueError(
                f"the KL warm-up of {self.kl_warmup_steps} steps would end after training "
                f"({self.max_steps} steps)"
            )

    def as_described(self) -> dict:
        """What of the plan a result depends on, by name."""
        settings = asdict(self)
        # How often to write a checkpoint changes no result.
        del settings["checkpoint_seconds"], settings["precision_is_auto"]
        return settings | ({"precision": "auto"} if self.precision_is_auto else {})

    def beta_at(self, step: int) -> float:
        """Weight of the KL term at a step: from 0 to beta over the warm-up, then beta.

        Constant: beta from the start. Linear: t = step / steps. Cosine: (1 - cos(pi t)) / 2.
        Cyclical: ``kl_cycles`` equal cycles, each linear over its first half and at beta over its
        second; the last one ends the warm-up. Source: Fu et al. 2019, arXiv:1903.10145.
        """
        if self.kl_warmup == "constant" or step >= self.kl_warmup_steps:
            return self.beta
        t = step / self.kl_warmup_steps
        if self.kl_warmup == "cosine":
            t = (1.0 - math.cos(math.pi * t)) / 2.0
        elif self.kl_warmup == "cyclical":
            t = min(1.0, 2.0 * (t * self.kl_cycles % 1.0))
        return self.beta * t

    def is_final(self, step: int) -> bool:
        """Whether the warm-up is over: only then do held-out objectives compare."""
        return self.kl_warmup == "constant" or step >= self.kl_warmup_steps


class InterruptionError(Exception):
    """Training was asked to stop; its checkpoint is written."""


@dataclass
class Progress:
    """What a run has seen so far: written into the checkpoint, returned at the end."""

    step: int = 0
    best_step: int = -1
    drops: int = 0  # times that the learning rate has fallen
    dropped_at: int = -1  # the step of the last time
    best_objective: float = -math.inf  # the held-out ELBO where beta is 1
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
    tag: object = "",
    say: Callable[[str], None] = lambda text: None,
    is_to_stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Maximise the ELBO of ``training``; leave in ``model`` the weights of the best held-out one.

    Early stopping looks at reconstruction - beta KL of the validation cells, and only from the step
    at which the warm-up is over: the same under a lighter KL term is not comparable with the final
    one. When ``patience`` evaluations in a row have not improved the best by ``min_improvement``
    nats a cell (a smaller gain is no new best), the learning rate falls to RATE_LEFT of itself;
    after ``learning_rate_drops`` times, training stops.

    A checkpoint is written to ``checkpoint`` every ``checkpoint_seconds`` and removed by
    ``remove_checkpoint`` once the caller has stored the result. One that was written by another
    plan, model, data set or ``tag`` (what stands for the code), or that cannot be read, is not
    used; ``say`` is told so, and where training goes on from.

    Raises ``FloatingPointError`` when the loss or the held-out ELBO is no longer a number, and
    ``InterruptionError``, with a checkpoint written, after a step at which ``is_to_stop()``.
    """
    model.to(device)
    step = make_step(model, len(training), plan, device)
    optimizer = make_optimizer(model, plan, len(training))
    batches = ShuffledBatches(training, plan.batch_size, plan.seed)
    made_by = describe(model, training, validation, plan.as_described(), tag)
    kept = Checkpoint(checkpoint, made_by, plan.precision, say)
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = kept.read(model, optimizer, best)
    progress = Progress(**found or {})
    if not found and plan.is_final(0):  # fine-tuning: the start is a model to beat
        progress.best_step = 0
        progress.best_objective = cell_elbo(model, validation, device).objective(plan.beta)
    optimizer.rate = RATE_LEFT**progress.drops
    written = time.monotonic()
    while not progress.stopped_by:
        _advance(step, optimizer, batches, progress)
        if progress.step % plan.validation_interval == 0 or progress.step == plan.max_steps:
            _evaluate(model, validation, plan, progress, best, batches, device)
            optimizer.rate = RATE_LEFT**progress.drops
            report(progress)
            if time.monotonic() - written >= plan.checkpoint_seconds:
                kept.write(model, optimizer, best, asdict(progress))
                written = time.monotonic()
        if is_to_stop():
            kept.write(model, optimizer, best, asdict(progress))
            raise InterruptionError(f"a checkpoint of step {progress.step} is written")
    model.load_state_dict(best)
    model.eval()
    return progress


def make_optimizer(model: VAE, plan: TrainingPlan, n_cells: int) -> Adam:
    """Adam; weight matrices decay by ``weight_decay / n_cells``, the pull of a fixed prior.

    A prior counts once and the likelihood once a cell, so the decay that suits 500 cells would
    flatten 50,000. Biases, norms, theta and the prior do not decay: the null profile is not a
    complexity.
    """
    decayed = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    noise = [p for name, p in model.named_parameters() if name in NOISE_PARAMETERS]
    rest = [p for p in model.parameters() if p.requires_grad and p not in {*decayed, *noise}]
    rate, decay = plan.learning_rate, plan.weight_decay / n_cells
    return Adam(
        [
            {"params": decayed, "lr": rate, "weight_decay": decay},
            {"params": rest, "lr": rate, "weight_decay": 0.0},
            {"params": noise, "lr": NOISE_SPEED * rate, "weight_decay": 0.0},
        ]
    )


Step = Callable[[CountData, np.ndarray, int], StepLoss]


def make_step(model: VAE, n_cells: int, plan: TrainingPlan, device: torch.device) -> Step:
    """Sets the gradients of the loss of some cells of data at a step; fused where that serves.

    ``n_cells``: training cells in all.
    """
    if fused.has_step(model):
        step = fused.FusedStep(model, n_cells, plan.precision == "bfloat16")
        return lambda data, cells, at: step(
            data, cells, step.noise(len(cells), plan.seed, at), plan.beta_at(at), plan.free_bits
        )
    if device.type == "cpu":
        return lambda data, cells, at: autograd_step(
            model, data.chunk(cells, device), n_cells, plan, at
        )
    held: list = [None, None]  # a buffer of data, and its copy on the device

    def on_device(data: CountData, cells: np.ndarray, at: int) -> StepLoss:
        if held[0] is not data:
            held[:] = data, DeviceData(data, device)
        return autograd_step(model, held[1].chunk(cells), n_cells, plan, at)

    return on_device


def autograd_step(model: VAE, batch: Batch, n_cells: int, plan: TrainingPlan, at: int) -> StepLoss:
    """Gradients of any model on any device."""
    # The stream of dropout and of z is a function of (seed, step).
    stream = np.random.SeedSequence([plan.seed, at]).generate_state(1, np.uint64)
    torch.manual_seed(int(stream[0] >> 1))
    model.train()
    parts = model(batch)
    kl, reconstruction = parts.kl.mean(), parts.reconstruction.mean()
    prior = model.log_theta_prior() / n_cells
    penalty = kl
    if plan.free_bits:
        # Up to free_bits nats a dimension cost nothing: max(KL_j, free_bits) - KL_j is added back.
        penalty = kl + (plan.free_bits - parts.kl_dimensions.mean(0)).clamp_min(0.0).sum()
    loss = plan.beta_at(at) * penalty - reconstruction - prior
    model.zero_grad(set_to_none=True)
    loss.backward()
    return StepLoss(*torch.stack([loss, reconstruction, kl]).detach().tolist())


def _advance(step: Step, optimizer, batches, progress) -> None:
    """One optimiser step."""
    found = step(*batches[progress.step], progress.step)
    if not math.isfinite(found.loss):
        raise FloatingPointError(
            f"the loss is not a number at step {progress.step}; lower train.learning_rate"
        )
    optimizer.step()
    progress.step += 1
    progress.train_elbo_sum += found.reconstruction - found.kl
    progress.train_steps += 1


def _evaluate(model, validation, plan, progress, best, batches, device) -> None:
    """Record the held-out ELBO, keep the best weights, decide whether to stop."""
    held_out = cell_elbo(model, validation, device)
    objective = held_out.objective(plan.beta)
    if not math.isfinite(objective):
        raise FloatingPointError(
            f"the held-out ELBO is not a number at step {progress.step}; lower train.learning_rate"
        )
    at = embed(model, validation, device)
    progress.history.append(
        {
            "step": progress.step,
            "epoch": progress.step / batches.steps_per_epoch,
            "beta": plan.beta_at(progress.step),
            "learning_rate": plan.learning_rate * RATE_LEFT**progress.drops,
            "train_elbo": progress.train_elbo_sum / progress.train_steps,
            "validation_elbo": held_out.mean,
            "validation_reconstruction": float(held_out.reconstruction.mean()),
            "validation_kl": float(held_out.kl.mean()),
            "active_units": active_units(at.mean),
            "mutual_information": mutual_information(at),
        }
    )
    progress.kl.append([float(value) for value in held_out.kl_dimensions.mean(0)])
    progress.train_elbo_sum, progress.train_steps = 0.0, 0
    if plan.is_final(progress.step):
        if objective > progress.best_objective + plan.min_improvement or progress.best_step < 0:
            progress.best_objective, progress.best_step = objective, progress.step
            for name, tensor in model.state_dict().items():
                best[name].copy_(tensor)
        since = max(progress.best_step, progress.dropped_at)
        if (progress.step - since) / plan.validation_interval >= plan.patience:
            if progress.drops < plan.learning_rate_drops:
                progress.drops, progress.dropped_at = progress.drops + 1, progress.step
            else:
                progress.stopped_by = "early stopping"
    if progress.step >= plan.max_steps:
        progress.stopped_by = progress.stopped_by or "max_steps"
