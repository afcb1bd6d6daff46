"""Runs in ModelOpt's environment: quantize every tensor of a safetensors file with its public NVFP4QTensor.

usage: python oracle_modelopt.py INPUT OUTPUT [DEVICE]
"""

import sys

import torch
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from safetensors.torch import load_file, save_file

BLOCK_SIZE = 16


def main(source: str, destination: str, device: str = "cpu") -> None:
    result = {}
    for name, weight in load_file(source, device=device).items():
        global_scale = NVFP4QTensor.get_weights_scaling_factor_2(weight)
        block_scale, _ = NVFP4QTensor.get_weights_scaling_factor(weight, BLOCK_SIZE, global_scale)
        quantized, *_ = NVFP4QTensor.quantize(weight, BLOCK_SIZE, block_scale, global_scale)
        decoded = quantized.dequantize(
            dtype=torch.float32, scale=block_scale, double_scale=global_scale, block_sizes={-1: BLOCK_SIZE}
        )
        parts = {
            "packed_weight": quantized._quantized_data,
            "block_scale": block_scale,
            "global_scale": global_scale.reshape(()),
            "decoded": decoded,
        }
        result |= {f"{name}/{part}": value.cpu().contiguous() for part, value in parts.items()}
    save_file(result, destination)


if __name__ == "__main__":
    main(*sys.argv[1:])
