"""The recipe that made the demo model: everything the weights depend on besides the code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training settings; the committed weights were made with the defaults."""

    seed: int = 20_261_123
    num_steps: int = 2600
    """Optimizer steps."""
    problems_per_step: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType({"math": 160, "instruct": 160, "prose": 48, "vision": 128, "clip": 32})
    )
    task_weights: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType(
            {"math": 1.0, "instruct": 1.0, "prose": 0.5, "vision": 1.0, "clip": 1.0}
        )
    )
    """Weight of each task's mean loss per token: a picture's answer is a few tokens, a story a hundred."""
    row_tokens: int = 512
    """Tokens in a packed row."""
    peak_learning_rate: float = 2.5e-3
    warmup_steps: int = 200
    decay_share: float = 0.4
    """Last share of the steps, in which the learning rate falls linearly to zero."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    max_gradient_norm: float = 1.0
    balance_weight: float = 0.01
    """Weight of the router's load-balancing loss."""
    initial_layer_scalar: float = 0.8
    """Starting value of each layer's ``layer_scalar``, which is then trained."""

    initial_post_norm: float = 0.3
    """Starting weight of the norms on sublayer outputs."""

    def learning_rate(self, step: int) -> float:
        """Warm-up, plateau, linear decay."""
        decay_steps = max(1, round(self.num_steps * self.decay_share))
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cool = min(1.0, (self.num_steps - step) / decay_steps)
        return self.peak_learning_rate * min(warm, cool)
