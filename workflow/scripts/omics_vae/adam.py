"""Adam with decoupled weight decay.

The arithmetic is torch's own fused kernel, the same as in ``torch.optim.AdamW(fused=True)``. That
class is not used because its import brings torch's compiler along: a second and a half a job, as
long as the training of a small data set takes.
"""

import torch

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Moves parameters against the gradients in their ``.grad``.

    .. math:: m \\leftarrow \\beta_1 m + (1 - \\beta_1) g,\\quad
              v \\leftarrow \\beta_2 v + (1 - \\beta_2) g^2,\\quad
              p \\leftarrow p - \\eta \\lambda p
              - \\eta \\frac{m / (1 - \\beta_1^t)}{\\sqrt{v / (1 - \\beta_2^t)} + \\epsilon}

    ``groups``: dicts with ``params``, ``lr`` and ``weight_decay`` (lambda); eta is ``lr`` times
    ``rate``, 1 until somebody lowers it.
    Sources: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    def __init__(self, groups: list[dict]):
        self.groups = [group for group in groups if group["params"]]
        self.rate = 1.0
        self.parameters = [p for group in self.groups for p in group["params"]]
        # In memory as the parameters are: the kernel goes through all of them side by side.
        self.first = {p: torch.zeros_like(p) for p in self.parameters}
        self.second = {p: torch.zeros_like(p) for p in self.parameters}
        self.steps = torch.zeros((), device=self.parameters[0].device)

    @torch.no_grad()
    def step(self) -> None:
        """One step of every parameter, each of which has a gradient laid out as itself."""
        self.steps += 1
        for group in self.groups:
            params = [p for p in group["params"] if p.grad is not None]
            torch._fused_adamw_(
                params,
                [p.grad for p in params],
                [self.first[p] for p in params],
                [self.second[p] for p in params],
                [],
                [self.steps] * len(params),
                lr=self.rate * group["lr"],
                beta1=BETA_1,
                beta2=BETA_2,
                weight_decay=group["weight_decay"],
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold: the number of steps, and both moments of each parameter."""
        moments = {
            f"{name}.{i}": of[p]
            for name, of in (("first", self.first), ("second", self.second))
            for i, p in enumerate(self.parameters)
        }
        return {"steps": self.steps} | moments

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Continue where :meth:`state` was taken."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
