"""Quantized demos, prompts with their reference answers, and vLLM engines run in one process for all tests."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from fourfold.demo import held_out, model_path

#: Few tokens, so that most experts' input scales differ widely: what tells the rules for them apart.
CALIBRATION = ("--samples", "16", "--sequence-length", "128", "--batch-size", "8")
HERE = Path(__file__).parent
_NESTED = "model.language_model."


@pytest.fixture(scope="session")
def quantized(tmp_path_factory, cli) -> Callable[..., Path]:
    """``quantized(NAME, *arguments)``: the demo, quantized by the command line; finished stages are shared."""
    root = tmp_path_factory.mktemp("served")

    def run(name: str, *arguments: str) -> Path:
        output = root / name
        if not output.exists():
            result = cli("quantize", "demo", "--output", output, "--stages", root / "stages", *arguments)
            assert result.returncode == 0, result.stderr
        return output

    return run


LLMCOMPRESSOR = ("--quantizer", "llmcompressor", "--unfuser", "reference", *CALIBRATION)


@pytest.fixture(scope="session")
def modelopt_layout(quantized) -> Path:
    """W4A4; an input scale of its own for every expert."""
    return quantized("modelopt-layout", *LLMCOMPRESSOR, "--layout", "modelopt")


@pytest.fixture(scope="session")
def compressed_tensors_layout(quantized) -> Path:
    """The same weights in the other layout."""
    return quantized("ct-layout", *LLMCOMPRESSOR, "--layout", "compressed-tensors")


@pytest.fixture(scope="session")
def weight_only(quantized) -> Path:
    """W4A16, by the built-in quantizer."""
    return quantized("weight-only", "--quantizer", "reference", "--scheme", "W4A16")


@pytest.fixture(scope="session")
def experts_only(quantized) -> Path:
    """As the published checkpoint: experts in NVFP4, the rest as it was. (Its FP8 cache would round once more.)"""
    return quantized("experts-only", *CALIBRATION, "--targets", "experts-only")


@pytest.fixture(scope="session")
def experts_only_ct(quantized) -> Path:
    """The same in the other layout: vLLM takes q, k and v for one linear, also where a layer has no v of its own."""
    return quantized("experts-only-ct", *CALIBRATION, "--targets", "experts-only", "--layout", "compressed-tensors")


ATTENTION, EXPERTS = ("--weights-only", "*.self_attn.*"), ("--weights-only", "*.experts.*")
REFERENCE = ("--quantizer", "reference", *CALIBRATION)


@pytest.fixture(scope="session")
def mixed(quantized) -> dict[str, Path]:
    """Two schemes in one checkpoint, by layout and by what is of weights alone: attention, or the experts."""
    return {
        f"{layout} {name}": quantized(f"{layout}-{name}", *REFERENCE, *alone, "--layout", layout)
        for layout in ("modelopt", "compressed-tensors")
        for name, alone in (("attention", ATTENTION), ("experts", EXPERTS))
    }


@pytest.fixture(scope="session")
def text_only(modelopt_layout, tmp_path_factory) -> Path:
    """The language model alone, as ``Gemma4ForCausalLM`` stores it: other names, no tower, its own configuration."""
    folder = tmp_path_factory.mktemp("text-only") / "checkpoint"
    skipped = shutil.ignore_patterns("processor_config.json", "manifest.json", "hf_quant_config.json", "*.safetensors")
    shutil.copytree(modelopt_layout, folder, ignore=skipped)
    config = json.loads((folder / "config.json").read_text())
    quantization = config["quantization_config"]
    quantization["ignore"] = [n.replace(_NESTED, "model.") for n in quantization["ignore"] if "vision" not in n]
    text = config["text_config"] | {"architectures": ["Gemma4ForCausalLM"], "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(text))
    tensors = {n: t for file in modelopt_layout.glob("*.safetensors") for n, t in load_file(file).items()}
    kept = {name.replace(_NESTED, "model."): t for name, t in tensors.items() if "vision" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def float32_tower(weight_only, tmp_path_factory) -> Path:
    """The W4A16 checkpoint with ``vision_config.dtype`` float32.

    vLLM makes the tower by Transformers' ``from_config``, which takes the dtype of the config and not the one asked
    for: stated as BF16, norms and position embeddings of the tower compute in BF16 in a float32 engine.
    """
    folder = tmp_path_factory.mktemp("float32-tower") / "checkpoint"
    shutil.copytree(weight_only, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model_path())


@pytest.fixture(scope="session")
def texts(processor) -> list[list[int]]:
    """Held-out problems with their reference answers, 500 positions and more."""
    found: list[list[int]] = []
    for problem in (*held_out("math", 3), *held_out("instruct", 3)):
        turn = {"role": "assistant", "content": [{"type": "text", "text": problem.target}]}
        text = processor.apply_chat_template([*problem.messages, turn], tokenize=False)
        found.append(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert sum(map(len, found)) - len(found) >= 500
    return found


@pytest.fixture(scope="session")
def pictures(processor, tmp_path_factory) -> list[dict]:
    """Held-out pictures: the prompt's text, the file, and what the processor makes of both."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for index, problem in enumerate(held_out("vision", 2)):
        file = folder / f"{index}.png"
        image = Image.fromarray(problem.frames()[0])
        image.save(file)
        text = processor.apply_chat_template(problem.messages, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[text], images=[[image]], add_special_tokens=False, return_tensors="pt")
        found.append({"text": text, "file": str(file), "inputs": dict(inputs)})
    return found


@pytest.fixture(scope="session")
def engines(
    modelopt_layout,
    compressed_tensors_layout,
    weight_only,
    float32_tower,
    experts_only,
    mixed,
    text_only,
    texts,
    pictures,
    tmp_path_factory,
    vllm_python,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Top ids and log-probabilities by case, from one process that loads every checkpoint in turn."""
    asked = [{"text": picture["text"], "file": picture["file"]} for picture in pictures]
    mo, ct = str(modelopt_layout), str(compressed_tensors_layout)
    cases: list[dict] = [
        {"name": "modelopt", "model": mo},
        {"name": "modelopt lazy", "model": mo, "environment": {"FOURFOLD_DECODE": "lazy"}},
        {"name": "modelopt per-expert", "model": mo, "environment": {"FOURFOLD_INPUT_SCALE": "per-expert"}},
        {"name": "modelopt compiled", "model": mo, "eager": False},
        {
            "name": "modelopt W4A16 compiled",
            "model": mo,
            "eager": False,
            "environment": {"FOURFOLD_ACTIVATIONS": "none"},
        },
        {"name": "ct", "model": ct},
        {"name": "ct compiled", "model": ct, "eager": False},
        {"name": "ct ignored", "model": ct, "environment": {"FOURFOLD_INPUT_SCALE": "ignored"}},
        {"name": "text-only", "model": str(text_only)},
        {"name": "weight-only", "model": str(weight_only)},
        {"name": "pictures", "model": str(float32_tower), "images": asked},
        {"name": "experts-only", "model": str(experts_only)},
        *({"name": name, "model": str(folder)} for name, folder in mixed.items()),
    ]
    folder = tmp_path_factory.mktemp("engines")
    request, answer, log = folder / "cases.json", folder / "out.npz", folder / "vllm.log"
    request.write_text(json.dumps([case | {"prompts": texts} for case in cases]))
    with log.open("w") as output:
        command = [str(vllm_python), str(HERE / "engines.py"), str(request), str(answer)]
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    assert code == 0, log.read_text()[-4000:]
    arrays = np.load(answer)
    return {case["name"]: (arrays[f"{case['name']}/ids"], arrays[f"{case['name']}/log_probs"]) for case in cases}
