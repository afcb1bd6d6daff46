"""Runs in ModelOpt's environment: its own NVFP4 fake-quantization kernels on every matrix of a safetensors file.

usage: python kernels.py interpret|cuda INPUT OUTPUT

INPUT holds ``NAME`` [O, K] and ``NAME/global_amax`` []. OUTPUT holds, in NAME's dtype (cuda) or float32 (interpret):

``NAME/dynamic``    the kernel of dynamic block quantization (``max``), which takes each block's amax itself
``NAME/cast``       the kernel that rounds to E2M1, on NAME / step
``NAME/static``     cuda: the kernel of static quantizers, with each block's amax given
``NAME/step``       cuda: the steps that ModelOpt computed for ``static``, float32 [O, K/16]
``NAME/e4m3``       interpret: the interpreter's own cast to float8 of each block's scale, [O, K/16]
``NAME/packed_weight``, ``block_scale``, ``global_scale``    cuda: what ModelOpt's export stores on the same GPU

``cuda`` calls ModelOpt's public functions. ``interpret`` has no GPU: Triton's interpreter runs the kernels on CPU
tensors. ModelOpt's wrappers enter ``torch.cuda.device`` and so cannot be called there; the kernels are, with the
arguments their wrappers give. Of ``static`` the interpreter cannot run ``libdevice.isnan``.
"""

import os
import sys

MODE = sys.argv[1]
if MODE == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"

# Triton reads that variable when it is imported, so all of this comes after it.
import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from modelopt.torch.kernels.quantization.gemm import fp4_kernel, fp4_kernel_hopper  # noqa: E402
from modelopt.torch.quantization import tensor_quant  # noqa: E402
from modelopt.torch.quantization.qtensor import NVFP4QTensor  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

BLOCK = 16


@triton.jit
def cast_e4m3(source, destination, count, TILE: tl.constexpr):
    """float32 to float8_e4m3fn and back."""
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    value = tl.load(source + at, mask=at < count, other=0.0)
    tl.store(destination + at, value.to(tl.float8e4nv).to(tl.float32), mask=at < count)


def step_of(weight: torch.Tensor, global_amax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Block amax, block scale before float8, and step with the export's floor, each [O, K/16]."""
    block_amax = weight.float().reshape(weight.shape[0], -1, BLOCK).abs().amax(-1)
    global_scale = global_amax.float() / (6.0 * 448.0)
    ratio = block_amax / (6.0 * global_scale)
    scale = torch.where(ratio == 0, 1.0, ratio).clamp(2**-9, 448.0).to(torch.float8_e4m3fn).float()
    return block_amax, ratio, scale * global_scale


def interpreted(weight: torch.Tensor, global_amax: torch.Tensor) -> dict[str, torch.Tensor]:
    rows, columns = weight.shape
    tile = (min(128, triton.next_power_of_2(rows)), max(64, triton.next_power_of_2(columns)))
    # float32 of any dtype: Triton's interpreter cuts a BF16 output off, where the compiled kernel rounds it.
    dynamic = torch.empty_like(weight, dtype=torch.float32)
    fp4_kernel_hopper.fp4_fake_quant_kernel[(triton.cdiv(rows, tile[0]), 1)](
        weight, dynamic, rows, columns, global_amax.float() / (6.0 * 448.0), *weight.stride(), *dynamic.stride(),
        BLOCK_SIZE=BLOCK, TILE_M=tile[0], TILE_N=tile[1], NUM_FP4_BLOCKS=tile[1] // BLOCK,
        OUT_DTYPE=tl.float32,
    )  # fmt: skip
    _, ratio, step = step_of(weight, global_amax)
    scaled = (weight.float() / step.repeat_interleave(BLOCK, -1)).contiguous()
    cast = torch.empty_like(scaled)
    size = 2**15
    fp4_kernel.static_blockwise_fp4_cast_kernel[(triton.cdiv(scaled.numel(), size),)](
        scaled, cast, scaled.numel(), TILE_SIZE=size, OUT_DTYPE=tl.float32
    )
    e4m3 = torch.empty_like(ratio)
    limited = ratio.clamp(max=448.0).contiguous()
    cast_e4m3[(triton.cdiv(limited.numel(), size),)](limited, e4m3, limited.numel(), TILE=size)
    return {"dynamic": dynamic, "cast": cast * step.repeat_interleave(BLOCK, -1), "e4m3": e4m3}


def on_gpu(weight: torch.Tensor, global_amax: torch.Tensor) -> dict[str, torch.Tensor]:
    weight, global_amax = weight.cuda(), global_amax.cuda().float()
    block_amax, _, step = step_of(weight, global_amax)
    step = step.repeat_interleave(BLOCK, -1)
    global_scale = global_amax / (6.0 * 448.0)
    block_scale, _ = NVFP4QTensor.get_weights_scaling_factor(weight, BLOCK, global_scale)
    packed, *_ = NVFP4QTensor.quantize(weight, BLOCK, block_scale, global_scale)
    return {
        "dynamic": tensor_quant.dynamic_block_quant(weight, BLOCK, global_amax, None, (2, 1), (4, 3)),
        "static": tensor_quant.static_blockwise_fp4_fake_quant(weight, block_amax, global_amax),
        "step": fp4_kernel.compute_fp4_scales(block_amax, global_amax),
        "cast": tensor_quant.fp4_cast_ste(weight.float() / step) * step,
        "packed_weight": packed._quantized_data, "block_scale": block_scale, "global_scale": global_scale,
    }  # fmt: skip


def main(source: str, destination: str) -> None:
    tensors, result = load_file(source), {}
    run = interpreted if MODE == "interpret" else on_gpu
    for name in tensors:
        if not name.endswith("/global_amax"):
            parts = run(tensors[name], tensors[f"{name}/global_amax"])
            result |= {f"{name}/{part}": value.cpu().contiguous() for part, value in parts.items()}
    save_file(result, destination)


if __name__ == "__main__":
    main(*sys.argv[2:])
