"""One layer's weights to NVFP4: scale groups of equal shape, a batch of them at a time.

Scales come from the largest absolute value of a scale group, in ModelOpt's order of operations, so ``max`` is
bit-equal to ModelOpt's.

Shape letters: N groups of a batch, O out features, K in features, G = K/16 blocks, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch

from fourfold.engine.descent import descend
from fourfold.engine.encode import encode
from fourfold.engine.gptq import gptq
from fourfold.engine.observations import DOWN, GATE_UP, LayerObservations
from fourfold.engine.rounding import FOUR_OVER_SIX_DIVISOR, search_four_over_six, search_mse
from fourfold.errors import QuantizationError
from fourfold.models.gemma4 import LinearModule
from fourfold.nvfp4 import BlockScalePolicy, NVFP4Weight, global_scale_from_amax

#: Damping as a share of columns over rows, where that is more than asked for.
_DAMPING_OF_FEW = 0.25

Algorithm = Literal["max", "mse", "four-over-six", "local-hessian", "gptq"]
Group = tuple[LinearModule, ...]

#: Weights rounded at once, by device: work space is a few times four bytes each.
_BATCH_WEIGHTS = {"cpu": 2**23, "cuda": 2**27}
#: Bytes of Hessians factored at once.
_HESSIAN_BYTES = {"cpu": 2**28, "cuda": 2**30}


@dataclass(frozen=True, kw_only=True)
class Packer:
    """How weights are rounded, and where."""

    algorithm: Algorithm
    device: torch.device
    damping: float = 0.01
    #: How often GPTQ's result is gone over again (:mod:`fourfold.engine.descent`).
    sweeps: int = 0

    def pack(
        self,
        targets: Iterable[LinearModule],
        read: Callable[[LinearModule], torch.Tensor],
        observations: LayerObservations | None = None,
    ) -> Iterator[tuple[LinearModule, NVFP4Weight]]:
        """Every target of one layer with its weight in NVFP4, on the CPU.

        ``read`` gives a weight [O, K] on any device; ``observations`` the moments that an algorithm asks for.
        Raises :class:`QuantizationError` naming a module that holds NaN or infinity, or zeros alone.
        """
        for batch in self._batches(targets):
            positions = tuple(zip(*batch, strict=True))
            weights = [torch.stack([read(m) for m in modules]).to(self.device) for modules in positions]
            global_scales = self._global_scales(batch, weights)
            hessian = self._hessian(batch, observations)
            damping = self._damping(batch, observations)
            for modules, weight in zip(positions, weights, strict=True):
                stacked = self._round(modules, weight, global_scales, hessian, damping)
                parts = (stacked.packed_weight.cpu(), stacked.block_scale.cpu(), stacked.global_scale.cpu())
                for module, part in zip(modules, zip(*parts, strict=True), strict=True):
                    yield module, NVFP4Weight(*part)

    def _batches(self, targets: Iterable[LinearModule]) -> Iterator[list[Group]]:
        """Scale groups whose members have equal shapes, as many as a batch may hold."""
        by_group = sorted(targets, key=lambda module: module.scale_group)
        groups = [tuple(members) for _, members in groupby(by_group, key=lambda module: module.scale_group)]
        kind = self.device.type
        batch: list[Group] = []
        # Stable, so experts of one shape stay together and in order.
        for group in sorted(groups, key=_signature):
            limit = _BATCH_WEIGHTS[kind] // sum(module.numel for module in group)
            if self.algorithm == "gptq":
                limit = min(limit, _HESSIAN_BYTES[kind] // (4 * group[0].shape[1] ** 2))
            if batch and (_signature(group) != _signature(batch[0]) or len(batch) >= limit):
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch

    def _global_scales(self, batch: list[Group], weights: list[torch.Tensor]) -> torch.Tensor:
        """float32 [N]: one a group."""
        members = torch.stack([_amax(weight) for weight in weights])
        amaxes = members.amax(dim=0)
        try:
            if self.algorithm == "four-over-six":
                amaxes = amaxes * (6.0 * 448.0 / FOUR_OVER_SIX_DIVISOR)
            return global_scale_from_amax(amaxes, BlockScalePolicy.MODELOPT)
        except ValueError as error:
            spoilt = (~members.isfinite()).nonzero()
            member, group = spoilt[0].tolist() if len(spoilt) else (0, int(amaxes.argmin()))
            raise QuantizationError(f"{batch[group][member].name}: {error}") from None

    def _round(
        self,
        modules: tuple[LinearModule, ...],
        weight: torch.Tensor,
        global_scales: torch.Tensor,
        hessian: torch.Tensor | None,
        damping: torch.Tensor,
    ) -> NVFP4Weight:
        """``weight`` [N, O, K] under its groups' scales."""
        block_scale = None
        if self.algorithm == "gptq":
            assert hessian is not None  # asked for by this algorithm
            decoded, block_scale = gptq(weight, hessian, global_scales, damping)
            if self.sweeps:
                decoded, block_scale = descend(
                    weight, decoded, block_scale,
                    hessian=hessian, global_scale=global_scales, damping=damping, sweeps=self.sweeps,
                )  # fmt: skip
            weight = decoded
        elif self.algorithm in ("mse", "local-hessian"):
            block_scale = search_mse(weight, global_scales, hessian)
        elif self.algorithm == "four-over-six":
            block_scale = search_four_over_six(weight, global_scales)
        try:
            return encode(weight, global_scales, block_scale)
        except ValueError as error:
            matrix = int(str(error).partition(":")[0].removeprefix("matrix "))
            raise QuantizationError(f"{modules[matrix].name}: {str(error).partition(': ')[2]}") from None

    def _hessian(self, batch: list[Group], observations: LayerObservations | None) -> torch.Tensor | None:
        """Moments of the batch's inputs: float32 [N, G, 16, 16] or [N, K, K]."""
        if self.algorithm not in ("local-hessian", "gptq"):
            return None
        found = []
        for group in batch:
            name, index = moments_of(group[0])
            if observations is None or name not in observations.moments:
                raise QuantizationError(f"{group[0].name}: algorithm {self.algorithm} saw no inputs of it")
            found.append(observations.moments[name].sums[index])
        return torch.stack(found).to(self.device)

    def _damping(self, batch: list[Group], observations: LayerObservations | None) -> torch.Tensor:
        """float32 [N]: the option's, or more for an expert with few inputs for its width.

        X^T X of n rows is off from what it estimates by about the share K / n; without room for that, GPTQ would
        fit the few inputs it has seen, at the expense of all others.
        """
        rows = [0] * len(batch)
        for place, group in enumerate(batch):
            name, index = moments_of(group[0])
            if observations is not None and name in observations.moments:
                rows[place] = int(observations.moments[name].rows_E[index])
        shares = [
            max(self.damping, _DAMPING_OF_FEW * group[0].shape[1] / max(n, 1))
            for group, n in zip(batch, rows, strict=True)
        ]
        return torch.tensor(shares, device=self.device)


def moments_of(module: LinearModule) -> tuple[str, int]:
    """Where a module's inputs stand among a layer's moments: name, and matrix number."""
    if module.expert is None:
        return module.scale_group, 0
    return (DOWN if module.projection == "down_proj" else GATE_UP), module.expert


def _signature(group: Group) -> tuple[tuple[int, int], ...]:
    return tuple(module.shape for module in group)


def _amax(weight: torch.Tensor) -> torch.Tensor:
    """Largest absolute value of each matrix [N, O, K], float32 [N]; NaN where there is one."""
    low, high = torch.aminmax(weight.flatten(1), dim=1)
    return torch.maximum(-low, high).float()
