"""The role *unfuser*: fused 3-D experts to per-expert ``nn.Linear``, and back.

A whole minimal plugin::

    from fourfold.errors import ModelError
    from fourfold.hookspecs import hookimpl
    from fourfold.interfaces.unfuser import Unfuser
    from fourfold.plugins import Entry

    class KeepFused(Unfuser):
        '''For a quantizer that handles fused experts itself.'''

        def unfuse(self, model):
            if not any(name.endswith(".experts.gate_up_proj") for name, _ in model.named_parameters()):
                raise ModelError("no fused experts found")

        def fuse(self, model):
            pass  # nothing was split

    @hookimpl
    def fourfold_register_unfusers():
        return [Entry(name="keep-fused", summary="leaves the experts alone", implementation="my_plugin:KeepFused")]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from fourfold.config import Options

if TYPE_CHECKING:
    from torch import nn

OptionsT = TypeVar("OptionsT", bound=Options)


class Unfuser(ABC, Generic[OptionsT]):
    """Splits fused experts in a loaded model, in place, and restores them.

    After :meth:`unfuse`, every expert's matrices are ``nn.Linear`` modules under the canonical names
    ``...layers.N.experts.E.{gate,up,down}_proj``, unless the unfuser's quantizer does that itself.
    """

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def unfuse(self, model: nn.Module) -> None:
        """Change ``model`` in place. Raises :class:`fourfold.errors.ModelError` for experts it does not know."""

    @abstractmethod
    def fuse(self, model: nn.Module) -> None:
        """The exact inverse of :meth:`unfuse`, in place; values changed meanwhile are carried back."""
