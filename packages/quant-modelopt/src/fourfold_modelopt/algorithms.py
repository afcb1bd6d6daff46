"""From options to ModelOpt's configuration: quantizer attributes and the calibration algorithm.

Weights are *dynamic* where every block scale follows from the block's own amax and only the global amax is stored
(``max``, ``awq-clip``), and *static* where a block amax is stored and may be searched (``mse`` and the rest).
``type`` is ModelOpt's word for it; activations are always dynamic, their global amax calibrated.

``mse``, ``four-over-six`` and ``local-hessian`` are max calibration followed by :mod:`fourfold_modelopt.search`,
which drives ModelOpt's own calibrators: ModelOpt's ``mse`` mode itself calls a Triton kernel that no CPU runs.
"""

from __future__ import annotations

from typing import Any

from fourfold_modelopt.cpu_backend import ACTIVATIONS, WEIGHTS
from fourfold_modelopt.options import ModelOptOptions

_NVFP4: dict[str, Any] = {
    "num_bits": (2, 1),
    "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)},
}
_NVFP4_STATIC: dict[str, Any] = {
    "num_bits": (2, 1),
    "block_sizes": {-1: 16, "type": "static", "scale_bits": (4, 3)},
}
_FOUR_OVER_SIX: dict[str, Any] = {
    "num_bits": (2, 1),
    "block_sizes": {-1: 16, "type": "static", "scale_bits": (4, 3), "four_over_six": True},
}
#: Attributes of the key and value quantizers under an FP8 KV cache.
KV_FP8: dict[str, Any] = {"num_bits": (4, 3), "axis": None}

#: Weight algorithms that :mod:`fourfold_modelopt.search` carries out after max calibration.
SEARCHED = ("mse", "four-over-six", "local-hessian")


def weight_attributes(options: ModelOptOptions, *, on_cpu: bool) -> dict[str, Any]:
    """Attributes of every target's weight quantizer."""
    if options.weight_algorithm == "four-over-six":
        attributes = _FOUR_OVER_SIX
    elif options.weight_algorithm in (*SEARCHED, "gptq"):
        attributes = _NVFP4_STATIC
    else:
        attributes = _NVFP4
    # The backend's name also brings its own GPTQ helper, which is wanted on every device.
    return attributes | {"backend": WEIGHTS} if on_cpu or options.algorithm == "gptq" else attributes


def input_attributes(*, on_cpu: bool) -> dict[str, Any]:
    """Attributes of the input quantizer of every target in W4A4."""
    return _NVFP4 | {"backend": ACTIVATIONS} if on_cpu else _NVFP4


def calibration_algorithm(options: ModelOptOptions) -> dict[str, Any]:
    """What ``modelopt.torch.quantization.calibrate`` is asked to do."""
    if options.algorithm == "gptq":
        return {
            "method": "gptq",
            "perc_damp": options.gptq_damping,
            "block_size": options.gptq_block_size,
            # One layer after the other: the Hessians of one layer fit, those of a whole model do not.
            "layerwise": {"enable": True},
        }
    if options.algorithm == "awq-clip":
        return {
            "method": "awq_clip",
            "min_clip_ratio": options.clip_min_ratio,
            "shrink_step": options.clip_step,
        }
    if options.algorithm == "act-headroom":
        return {
            "method": "nvfp4_act_headroom",
            "rho": options.headroom_rho,
            "anchor_percentile": options.headroom_anchor_percentile,
            "upper_percentile": options.headroom_upper_percentile,
            "weight_scale_algorithm": {"method": "max"},
        }
    return {"method": "max"}
