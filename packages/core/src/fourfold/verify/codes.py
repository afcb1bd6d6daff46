"""Rules about packed codes, told from how often each byte stands in them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fourfold.verify.checkpoint import PARTS

if TYPE_CHECKING:
    import torch

    from fourfold.verify.module import ModuleView
    from fourfold.verify.rule import Look

#: The largest magnitude code that some weight must reach: 5 is the value 3.
_MIN_TOP_CODE = 5
#: Fewer bytes than this may be alike by chance.
_MIN_BYTES = 16
#: What two weights that are no copies of each other cannot share, along with how often each byte stands in them.
_HEAD_BYTES = 4096


def codes_not_zero(look: Look, module: ModuleView) -> None:
    """The codes of a tensor are not all zero (of either sign)."""
    if (histogram := module.code_histogram) is None:
        return
    look.count()
    if _top_code(histogram) == 0:
        name = module.parts[PARTS[0]].name
        look.wrong(
            name, found="all codes zero", expected="codes of every magnitude",
            message=f"{name} decodes to zero: it was never filled, or its weights were zeroed",
        )  # fmt: skip


def codes_vary(look: Look, module: ModuleView) -> None:
    """The bytes of a packed weight are not all equal."""
    histogram = module.code_histogram
    if histogram is None or int(histogram.sum()) < _MIN_BYTES:
        return
    look.count()
    value = int(histogram.argmax())
    if int(histogram[value]) == int(histogram.sum()) and value & 0x77:
        name = module.parts[PARTS[0]].name
        look.wrong(
            name, found=f"byte {value:#04x} throughout", expected="codes that follow the weights",
            message=f"{name} is constant: it was overwritten, or the weights were NaN when they were rounded",
        )  # fmt: skip


def codes_reach_top(look: Look, module: ModuleView) -> None:
    """Some weight of a tensor uses the upper end of the E2M1 grid (3, 4 or 6)."""
    if (histogram := module.code_histogram) is None:
        return
    look.count()
    top = _top_code(histogram)
    if 0 < top < _MIN_TOP_CODE:
        name = module.parts[PARTS[0]].name
        look.wrong(
            name, found=f"largest magnitude code {top}", expected=f"{_MIN_TOP_CODE} to 7",
            message=f"{name} uses only the low end of the grid: its block scales are too large for its weights",
        )  # fmt: skip


def no_twin(look: Look, module: ModuleView) -> None:
    """No two modules hold the same codes under the same block scales, unless the source holds them twice."""
    codes, scales = module.code_histogram, module.scale_histogram
    if codes is None or scales is None or not module.well_formed or int((codes > 0).sum()) < _MIN_BYTES:
        return
    look.count()
    head = module.values[PARTS[0]].flatten()[:_HEAD_BYTES].numpy().tobytes()
    print_ = hashlib.blake2b(codes.numpy().tobytes() + scales.numpy().tobytes() + head, digest_size=16).digest()
    twin = module.checkpoint.seen.setdefault(print_, module.name)
    if twin == module.name or module.source_is_that_of(twin):
        return
    look.wrong(
        module.name, found=f"the codes and block scales of {twin}", expected="its own",
        message=f"{module.name} and {twin} hold the same weight: one was written over the other",
    )  # fmt: skip


def _top_code(histogram: torch.Tensor) -> int:
    """The largest magnitude code in any byte that occurs."""
    present = histogram.nonzero().flatten()
    return int(((present & 0x07).max()).maximum((present >> 4 & 0x07).max())) if present.numel() else 0
