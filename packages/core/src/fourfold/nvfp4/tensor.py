"""The canonical NVFP4 weight: three tensors, all in decode direction.

decode: ``w = e2m1(code) x (block_scale x global_scale)``, in float32 and in this order. The bracket is
rounded once, then the product; ModelOpt and vLLM decode in the same order. compressed-tensors stores the
reciprocal of the global scale and computes ``block_scale / reciprocal`` instead, which can differ from this
by one float32 ulp.

Shape letters: O out features, K in features, P = K/2 bytes, G = K/16 blocks; ``...`` any leading axes, such
as E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fourfold.nvfp4.constants import BLOCK_SIZE, CODES_PER_BYTE
from fourfold.nvfp4.e2m1 import decode_e2m1, unpack_codes

_BYTES_PER_BLOCK = BLOCK_SIZE // CODES_PER_BYTE
#: Both codes of a byte without their signs.
_MAGNITUDES = 0x77


@dataclass(frozen=True, eq=False)
class NVFP4Weight:
    """A quantized weight [..., O, K].

    Attributes:
        packed_weight: uint8 [..., O, P], two E2M1 codes a byte, low nibble = even column.
        block_scale: float8_e4m3fn [..., O, G].
        global_scale: float32, shape [] for one scale in all or the leading axes [...] for one a matrix.

    Raises:
        TypeError: a part has another dtype.
        ValueError: shapes that do not belong together, or parts on different devices.
    """

    packed_weight: torch.Tensor
    block_scale: torch.Tensor
    global_scale: torch.Tensor

    def __post_init__(self) -> None:
        for name, dtype in (
            ("packed_weight", torch.uint8),
            ("block_scale", torch.float8_e4m3fn),
            ("global_scale", torch.float32),
        ):
            part = getattr(self, name)
            if not isinstance(part, torch.Tensor):
                raise TypeError(f"{name} must be a tensor, not {type(part).__name__}")
            if part.dtype != dtype:
                raise TypeError(f"{name} must be {dtype}, not {part.dtype}")
        self._check_shapes()
        devices = {str(part.device) for part in (self.packed_weight, self.block_scale, self.global_scale)}
        if len(devices) > 1:
            raise ValueError(f"packed_weight, block_scale and global_scale are on different devices: {sorted(devices)}")

    def _check_shapes(self) -> None:
        packed = tuple(self.packed_weight.shape)
        if len(packed) < 2 or 0 in packed or packed[-1] % _BYTES_PER_BLOCK:
            raise ValueError(
                f"packed_weight has shape {list(packed)}; expected [..., O, K/2], not empty, "
                f"with K a multiple of {BLOCK_SIZE}"
            )
        blocks = (*packed[:-1], packed[-1] // _BYTES_PER_BLOCK)
        if tuple(self.block_scale.shape) != blocks:
            raise ValueError(
                f"block_scale has shape {list(self.block_scale.shape)}; "
                f"packed_weight {list(packed)} needs {list(blocks)}"
            )
        if tuple(self.global_scale.shape) not in ((), packed[:-2]):
            expected = "[]" if len(packed) == 2 else f"[] or {list(packed[:-2])}"
            raise ValueError(f"global_scale has shape {list(self.global_scale.shape)}; expected {expected}")

    @property
    def shape(self) -> torch.Size:
        """Shape [..., O, K] of the decoded weight."""
        return torch.Size((*self.packed_weight.shape[:-1], self.packed_weight.shape[-1] * CODES_PER_BYTE))

    @property
    def nbytes(self) -> int:
        """Bytes of the three parts together."""
        return self.packed_weight.nbytes + self.block_scale.nbytes + self.global_scale.nbytes

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The decoded weight [..., O, K], computed in float32 and cast to ``dtype`` at the end."""
        values = split_blocks(decode_e2m1(unpack_codes(self.packed_weight)))
        scale = self.block_scale.to(torch.float32) * expand_global_scale(self.global_scale)
        return (values * scale.unsqueeze(-1)).flatten(-2).to(dtype)


def expand_global_scale(global_scale: torch.Tensor) -> torch.Tensor:
    """``global_scale`` [] or [...] as [] or [..., 1, 1], to meet block scales [..., O, G]."""
    return global_scale[..., None, None] if global_scale.ndim else global_scale


def split_blocks(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` [..., K] as [..., G, 16]."""
    return tensor.reshape(*tensor.shape[:-1], tensor.shape[-1] // BLOCK_SIZE, BLOCK_SIZE)


def zero_over_codes(packed_weight: torch.Tensor, block_scale: torch.Tensor) -> torch.Tensor:
    """Blocks with scale 0 and a code that is not zero, so that what they held is lost; bool [O, G].

    ``packed_weight`` is uint8 [O, P], ``block_scale`` float8_e4m3fn [O, G]. Scale 0 over zeros is just zeros.
    """
    magnitudes = packed_weight.reshape(*block_scale.shape, _BYTES_PER_BLOCK) & _MAGNITUDES
    return (block_scale.view(torch.uint8) == 0) & (magnitudes != 0).any(-1)
