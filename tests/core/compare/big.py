"""Run as a script: three models, the largest of some 170 MB: ``source`` and its quantizations ``a`` and ``b``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from compare.builders import Make, export, make_artifact, write_source

HIDDEN, WIDTH, EXPERTS, LAYERS, VOCAB = 1024, 512, 12, 2, 32768
BASE = "model.language_model.layers"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).mul_(0.05).to(torch.bfloat16)

    tensors = {"model.language_model.embed_tokens.weight": random(VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        tensors[f"{BASE}.{layer}.experts.gate_up_proj"] = random(EXPERTS, 2 * WIDTH, HIDDEN)
        tensors[f"{BASE}.{layer}.experts.down_proj"] = random(EXPERTS, HIDDEN, WIDTH)
    tensors[f"{BASE}.0.mlp.down_proj.weight"] = random(HIDDEN, 16 * HIDDEN)
    source = write_source(
        folder / "source",
        tensors,
        hidden_size=HIDDEN,
        moe_intermediate_size=WIDTH,
        num_experts=EXPERTS,
        num_hidden_layers=LAYERS,
    )
    artifact = make_artifact(source, folder / "artifact", Make())
    export(artifact, folder / "a", "modelopt")
    down = f"{BASE}.1.experts.3.down_proj"
    other = make_artifact(source, folder / "other", Make(amax={down: 1.5}, inputs={down: 3.0}))
    export(other, folder / "b", "compressed-tensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
