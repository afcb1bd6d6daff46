"""Rows with pictures: what the engine sees of them is what hooks see in Transformers' own model, called row by row."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor

from fourfold.calibration import CalibrationSpec, build_token_set
from fourfold.checkpoint.index import TensorFolder
from fourfold.checkpoint.reader import TensorReader
from fourfold.demo import model_path
from fourfold.engine.calibrate import Calibration
from fourfold.engine.model import LayerwiseModel
from fourfold.models.gemma4 import read_gemma4
from fourfold.progress import NoProgress

from .jobs import Bench, differing

NUM_EXPERTS, TOP_K = 128, 8
#: A linear that reads each scale group's input.
READS = {
    "self_attn.qkv": "self_attn.q_proj", "self_attn.o_proj": "self_attn.o_proj",
    "mlp.gate_up": "mlp.gate_proj", "mlp.down_proj": "mlp.down_proj",
}  # fmt: skip
#: Pictures of each row, by width and height.
ROWS = ([(96, 96)], [(120, 60), (48, 96)], [], [(96, 96)])


def write_chats(folder, seed=0):
    """A .jsonl file of :data:`ROWS`, its pictures of noise; their messages."""
    noise = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True)
    chats = []
    for row, sizes in enumerate(ROWS):
        parts = []
        for number, (width, height) in enumerate(sizes):
            name = f"pictures/{row}-{number}.png"
            Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
            parts.append({"type": "image", "path": name})
        parts.append({"type": "text", "text": "Describe the picture." if parts else "How many apples are left?"})
        chats.append([{"role": "user", "content": parts}, {"role": "assistant", "content": "A red circle."}])
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return path, chats


def tokens_of(path, **changes):
    spec = {"source": str(path), "samples": len(ROWS), "sequence_length": 192} | changes
    return build_token_set(CalibrationSpec(**spec), model_path())


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return write_chats(tmp_path_factory.mktemp("chats"))


@pytest.fixture(scope="module")
def bench(registry, chats, tmp_path_factory):
    return Bench(registry, model_path(), tokens_of(chats[0]), tmp_path_factory.mktemp("pictures"))


def observed(tokens, batch_size):
    """Observations of every layer."""
    source = TensorFolder(model_path())
    model = LayerwiseModel(model_path(), TensorReader(source), tuple(source.tensors), "cpu", "eager")
    calibration = Calibration(model, read_gemma4(source), tokens.model_inputs(batch_size), NoProgress())
    return [layer.observations.tensors() for layer in calibration.layers()]


class Oracle:
    """Amaxes and counts by plain hooks on the whole model, which the processor calls."""

    def __init__(self, chats, folder):
        model = AutoModelForImageTextToText.from_pretrained(
            model_path(), dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
        ).eval()
        processor = AutoProcessor.from_pretrained(model_path())
        layers = model.get_decoder().layers
        self.layers = [
            {"tokens": torch.zeros(NUM_EXPERTS, dtype=torch.int64)}
            | {f"expert.{kind}": torch.zeros(NUM_EXPERTS) for kind in ("gate_up", "down")}
            for _ in layers
        ]
        self.picture_tokens = 0
        for seen, layer in zip(self.layers, layers, strict=True):
            layer.experts.register_forward_pre_hook(self.see_experts(seen))
            for name in READS.values():
                layer.get_submodule(name).register_forward_pre_hook(self.see_linear(seen, name))
        for chat in chats:
            turns = [dict(turn, content=[whole(part, folder) for part in turn["content"]]) for turn in chat[:1]]
            answer = {"role": "assistant", "content": [{"type": "text", "text": chat[1]["content"]}]}
            inputs = processor.apply_chat_template(
                [*turns, answer], tokenize=True, return_dict=True, return_tensors="pt"
            )
            self.picture_tokens += int(inputs["mm_token_type_ids"].sum())
            with torch.inference_mode():
                model(**inputs, use_cache=False)

    def see_experts(self, seen):
        def see(module, args):
            hidden, index, _ = args
            for expert in index.unique().tolist():
                rows = hidden[(index == expert).any(-1)]
                gate, up = functional.linear(rows, module.gate_up_proj[expert]).chunk(2, dim=-1)
                for kind, values in (("gate_up", rows), ("down", module.act_fn(gate) * up)):
                    amax = seen[f"expert.{kind}"]
                    amax[expert] = max(amax[expert], values.abs().max().float())
                seen["tokens"][expert] += len(rows)

        return see

    def see_linear(self, seen, name):
        def see(_module, args):
            seen[name] = torch.maximum(seen.get(name, torch.zeros(())), args[0].abs().max().float())

        return see


def whole(part, folder):
    return part if part["type"] == "text" else {"type": "image", "path": str(folder / part["path"])}


def test_observations_are_those_of_the_whole_model(chats):
    """Every amax and every count, to the bit; rows of unlike length, two pictures, none."""
    path, messages = chats
    oracle, tokens = Oracle(messages, path.parent), tokens_of(path)
    layers = observed(tokens, batch_size=1)
    assert len(layers) == len(oracle.layers)
    for index, (ours, theirs) in enumerate(zip(layers, oracle.layers, strict=True)):
        for name in ("tokens", "expert.gate_up", "expert.down"):
            assert torch.equal(ours[name], theirs[name]), (index, name)
        for group, name in READS.items():
            assert torch.equal(ours[f"input.model.language_model.layers.{index}.{group}"], theirs[name]), (index, name)
        # Each position is routed to the same number of experts, those of pictures too; none is padding.
        assert int(ours["tokens"].sum()) == tokens.num_tokens * TOP_K
    assert 0 < oracle.picture_tokens < tokens.num_tokens


def test_streamed_is_the_same(bench):
    on_device, streamed = bench.quantize(), bench.quantize(stream=True, host_memory_gib=0.0)
    assert differing(on_device, streamed) == []
    assert on_device.manifest.expert_token_counts == streamed.manifest.expert_token_counts


def test_another_picture_is_another_calibration(chats, tmp_path):
    """Same chats, other pixels: other hashes, and other inputs of experts."""
    path, _ = write_chats(tmp_path / "other", seed=1)
    one, other = tokens_of(chats[0]), tokens_of(path)
    assert torch.equal(one.input_ids, other.input_ids)
    assert one.record.texts_sha256 != other.record.texts_sha256
    assert one.record.tokens_sha256 != other.record.tokens_sha256
    a, b = observed(one, 2)[0], observed(other, 2)[0]
    assert not torch.equal(a["expert.gate_up"], b["expert.gate_up"])
