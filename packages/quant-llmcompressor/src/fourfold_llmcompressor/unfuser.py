"""llm-compressor's own way to un-fuse experts: it calls it linearizing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcompressor.modeling.moe.linearize import get_non_linearized_moes, linearize_moe, repack_moe

from fourfold.config import Options
from fourfold.errors import ModelError
from fourfold.interfaces.unfuser import Unfuser
from fourfold_llmcompressor.quiet import quiet_toolchain

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LinearizedExperts(Unfuser[Options]):
    """Replaces each layer's experts by llm-compressor's list of experts with plain linears.

    The weights are copied, a layer at a time, so the peak is one layer's experts above the model. Every
    expert is called on every batch, with no rows where no token was routed to it.
    """

    def unfuse(self, model: PreTrainedModel) -> None:
        """See :class:`Unfuser`. Raises :class:`ModelError` where llm-compressor would change the dtype or
        skip.
        """
        fused = get_non_linearized_moes(model)
        if not fused:
            raise ModelError("llm-compressor finds no fused experts in this model; use the unfuser 'reference'")
        for name, experts in fused:
            # It allocates the linears in the config's dtype, whatever the weights are in.
            stated = getattr(experts, "config", model.config.get_text_config()).dtype
            if stated != experts.gate_up_proj.dtype:
                raise ModelError(
                    f"{name}: config.json states dtype {stated}, its weights are "
                    f"{experts.gate_up_proj.dtype}; llm-compressor would un-fuse into the "
                    "stated one; correct text_config.dtype, or use the unfuser 'reference'"
                )
        with quiet_toolchain():
            linearize_moe(model)

    def fuse(self, model: PreTrainedModel) -> None:
        """See :class:`Unfuser`."""
        with quiet_toolchain():
            repack_moe(model)
