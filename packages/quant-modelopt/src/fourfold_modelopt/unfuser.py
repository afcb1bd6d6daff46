"""The unfuser ``modelopt``: leave the experts fused, for ModelOpt's own wrapper to quantize.

ModelOpt finds a module with 3-D ``gate_up_proj`` [E, 2I, H] and ``down_proj`` [E, H, I] when it converts the model,
and gives each expert its weight quantizers; an input quantizer is shared by all experts of the layer. What it does
not find it skips, so this class looks first.
"""

from __future__ import annotations

from torch import Tensor, nn

from fourfold.config import Options
from fourfold.errors import ModelError
from fourfold.interfaces.unfuser import Unfuser

_FUSED_NDIM = 3


class ModelOptUnfuser(Unfuser[Options]):
    """Changes nothing; refuses experts that ModelOpt's wrapper would pass by."""

    def unfuse(self, model: nn.Module) -> None:
        """Check every ``experts`` module. Raises :class:`ModelError` naming one that ModelOpt would not wrap."""
        found = 0
        for name, module in model.named_modules():
            if name.rpartition(".")[2] != "experts":
                continue
            found += 1
            parts = (getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None))
            if not all(isinstance(p, Tensor) and p.ndim == _FUSED_NDIM for p in parts) or not hasattr(
                module, "num_experts"
            ):
                raise ModelError(
                    f"{name} ({type(module).__name__}): not the fused form that ModelOpt wraps "
                    "(num_experts, 3-D gate_up_proj and down_proj); its experts would stay BF16"
                )
        if not found:
            raise ModelError(f"{type(model).__name__}: no fused experts in this model")

    def fuse(self, model: nn.Module) -> None:
        """Nothing to undo."""
