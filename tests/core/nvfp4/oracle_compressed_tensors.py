"""Runs in llm-compressor's environment: observe and compress every tensor of a safetensors file.

The weight observer is the one its QuantizationModifier uses, the compressor that of ``save_compressed``.

usage: python oracle_compressed_tensors.py INPUT OUTPUT [DEVICE]
"""

import sys

import torch
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from llmcompressor.observers import Observer
from safetensors.torch import load_file, save_file


def main(source: str, destination: str, device: str = "cpu") -> None:
    scheme: QuantizationScheme = preset_name_to_scheme("NVFP4", targets=["Linear"])
    result = {}
    for name, weight in load_file(source, device=device).items():
        observer = Observer.load_from_registry("memoryless_minmax", base_name="weight", args=scheme.weights)
        qparams = observer(weight).get_qparams()
        state = {
            "weight": weight,
            # modules keep the scale in the weight's dtype until it is compressed
            "weight_scale": qparams["scale"].to(weight.dtype),
            "weight_global_scale": qparams["global_scale"],
        }
        compressed = NVFP4PackedCompressor.compress(state, scheme)
        decoded = NVFP4PackedCompressor.decompress(compressed, scheme)["weight"]
        parts = {
            "packed_weight": compressed["weight_packed"],
            "block_scale": compressed["weight_scale"],
            "encode_scale": compressed["weight_global_scale"].reshape(()),
            "decoded": decoded.to(torch.float32),
        }
        result |= {f"{name}/{part}": value.detach().cpu().contiguous() for part, value in parts.items()}
    save_file(result, destination)


if __name__ == "__main__":
    main(*sys.argv[1:])
