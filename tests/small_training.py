"""A training of milliseconds: one plan, one start, and ways to cut it short."""

from pathlib import Path

import torch

from omics_vae.data import CountData
from omics_vae.model import VAE
from omics_vae.training import Progress, TrainingPlan, train
from simulated_counts import CPU, Simulated, simulate, small_model

PLAN = TrainingPlan(
    max_steps=60,
    batch_size=32,
    learning_rate=5e-3,
    weight_decay=10.0,
    beta=1.0,
    kl_warmup="linear",
    kl_warmup_steps=20,
    kl_cycles=4,
    free_bits=0.0,
    validation_interval=8,
    patience=50,
    min_improvement=0.0,
    checkpoint_seconds=0.0,
    seed=3,
)


def simulated() -> Simulated:
    return simulate(260, 30, n_latent=2, seed=5, loading=1.0)


def parts() -> tuple[CountData, CountData]:
    """Training and held-out cells."""
    everything = simulated()
    return everything.data(slice(0, 200)), everything.data(slice(200, 260))


def run(
    checkpoint: Path,
    plan: TrainingPlan = PLAN,
    report=lambda progress: None,
    model: VAE | None = None,
    given: tuple[CountData, CountData] | None = None,
    told: dict | None = None,
    **architecture,
) -> tuple[VAE, Progress]:
    """A training from the fixed start; the model and what it saw.

    ``given``: training and held-out cells, if not :func:`parts`; ``told``: what else ``train`` is
    given.
    """
    torch.set_num_threads(1)
    fitted, held_out = given or parts()
    model = model or small_model(fitted, **architecture)
    return model, train(model, fitted, held_out, plan, CPU, checkpoint, report, **told or {})


def same(one: tuple[VAE, Progress], other: tuple[VAE, Progress]) -> bool:
    """Bit-identical weights and history."""
    (model, progress), (other_model, other_progress) = one, other
    state, other_state = model.state_dict(), other_model.state_dict()
    return progress == other_progress and all(
        torch.equal(state[name], other_state[name]) for name in state
    )


class KilledError(Exception):
    """Stands for the signal that ends a process."""


def kill_at(evaluation: int):
    """A report callback that dies at the given evaluation of its process."""
    seen = []

    def report(progress: Progress) -> None:
        seen.append(progress.step)
        if len(seen) == evaluation:
            raise KilledError

    return report
