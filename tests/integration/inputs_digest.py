"""Runs in a toolchain's environment: what the un-fused model's linears are given, without any toolchain.

``python inputs_digest.py MODEL TOKENS OUTPUT.json BATCH_SIZE``: for every linear of the text layers the sha256 of all
its inputs in their order, and their largest absolute value.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from fourfold.calibration import TokenSet
from fourfold.checkpoint.index import TensorFolder
from fourfold.models.gemma4 import read_gemma4
from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser


class Inputs:
    """A forward pre-hook that remembers what passes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._amax = 0.0

    def __call__(self, _module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        values = args[0].detach().contiguous()
        self._digest.update(values.view(torch.uint8).numpy().tobytes())
        self._amax = max(self._amax, values.abs().max().item())

    def record(self) -> dict[str, object]:
        return {"sha256": self._digest.hexdigest(), "amax": self._amax}


def main(model_path: str, tokens_path: str, output: str, batch_size: str) -> None:
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        model_path, dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    ReferenceUnfuser(ReferenceUnfuserOptions()).unfuse(model)
    inputs = {str(name): Inputs() for name in read_gemma4(TensorFolder(Path(model_path))).linears}
    for name, hook in inputs.items():
        model.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        for batch in TokenSet.load(Path(tokens_path)).batches(int(batch_size)):
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    seen = {name: hook.record() for name, hook in inputs.items()}
    Path(output).write_text(json.dumps({"transformers": transformers.__version__, "inputs": seen}))


if __name__ == "__main__":
    main(*sys.argv[1:])
