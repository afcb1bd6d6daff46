"""Better rounding: against the codec, against a full sweep, and by the error of outputs on tokens not calibrated on."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fourfold.calibration import CalibrationSpec, build_token_set
from fourfold.checkpoint.index import TensorFolder
from fourfold.checkpoint.reader import TensorReader
from fourfold.checkpoint.stored import InMemory, write_file
from fourfold.engine.calibrate import Calibration
from fourfold.engine.distributed import batches_of
from fourfold.engine.encode import codes_of, encode
from fourfold.engine.model import LayerwiseModel
from fourfold.engine.moments import MomentKind
from fourfold.engine.pack import moments_of
from fourfold.engine.rounding import search_mse
from fourfold.models.gemma4 import read_gemma4
from fourfold.nvfp4 import BlockScalePolicy, encode_e2m1, global_scale_from_amax, quantize, round_to_e2m1
from fourfold.pipeline import write_checkpoint_manifest
from fourfold.plugins import Role
from fourfold.progress import NoProgress
from fourfold.verify import verify_checkpoint

ALGORITHMS = ("mse", "four-over-six", "local-hessian", "gptq")


@pytest.fixture(scope="module")
def weights():
    """bfloat16 [4, 40, 96] with zero blocks, tiny blocks and an outlier; and global scales."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(4, 40, 96, generator=generator) * torch.tensor([1e-3, 0.02, 1.0, 50.0])[:, None, None]
    weight[0, 0, :16], weight[1, 3, 32:48], weight[2, 5, 7] = 0.0, 1e-9, 30.0
    weight = weight.to(torch.bfloat16)
    return weight, global_scale_from_amax(weight.abs().amax((-2, -1)), BlockScalePolicy.MODELOPT)


def test_encode_is_the_codec(weights):
    weight, scale = weights
    ours, judge = encode(weight, scale), quantize(weight, global_scale=scale, policy=BlockScalePolicy.MODELOPT)
    assert torch.equal(ours.packed_weight, judge.packed_weight)
    assert torch.equal(ours.block_scale.view(torch.uint8), judge.block_scale.view(torch.uint8))
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 1e30, 0.0])
    around = torch.cat([ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1)])
    values = torch.cat([around, -around, torch.tensor([-0.0])])
    assert torch.equal(codes_of(values), encode_e2m1(values))


def test_mse_is_as_good_as_trying_every_scale(weights):
    weight, scale = weights
    blocks = weight.float().reshape(4, 40, 6, 16)

    def error(codes):
        step = codes.view(torch.float8_e4m3fn).float()[..., None] * scale[:, None, None, None]
        return (round_to_e2m1(blocks / step) * step - blocks).square().sum(-1)

    every = torch.stack([error(torch.full((4, 40, 6), code, dtype=torch.uint8)) for code in range(1, 127)])
    found = error(search_mse(weight, scale).view(torch.uint8))
    assert torch.equal(found, every.amin(0))


@pytest.fixture(scope="module")
def held_out(demo):
    """X^T X of every linear's inputs on tokens of another seed, by module."""
    source = TensorFolder(demo.model)
    gemma = read_gemma4(source)
    tokens = build_token_set(CalibrationSpec(source="demo", samples=8, sequence_length=128, seed=1), demo.model)
    model = LayerwiseModel(demo.model, TensorReader(source), tuple(source.tensors), "cpu", "eager")
    calibration = Calibration(model, gemma, batches_of(tokens, 8), NoProgress(), MomentKind.FULL)
    moments = [layer.observations.moments for layer in calibration.layers()]
    return {
        name: moments[module.layer][moments_of(module)[0]].sums[moments_of(module)[1]]
        for name, module in gemma.linears.items()
    }


def output_error(artifact, held_out, source):
    """||X (W' - W)^T|| / ||X W^T|| over all modules."""
    off = size = 0.0
    for name, moment in held_out.items():
        weight = source[name]
        difference = artifact.weight(name).dequantize() - weight
        off += float(((difference @ moment) * difference).sum())
        size += float(((weight @ moment) * weight).sum())
    return (off / size) ** 0.5


def findings_of(artifact, demo, folder):
    """What the verifier finds in ``artifact``, exported."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    entry = demo.registry.get(Role.EXPORTER, "modelopt")
    demo.registry.load(Role.EXPORTER, "modelopt")(entry.options()).export(artifact, checkpoint, NoProgress())
    write_checkpoint_manifest(artifact, "modelopt", checkpoint)
    return verify_checkpoint(checkpoint, source=demo.model, progress=NoProgress()).findings


@pytest.fixture(scope="module")
def source(demo):
    folder = TensorFolder(demo.model)
    return {name: module.read(folder).float() for name, module in read_gemma4(folder).linears.items()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_less_output_error_than_max_and_clean(algorithm, demo, demo_max, held_out, source, tmp_path):
    artifact = demo.quantize(algorithm=algorithm, stream=algorithm == "gptq")
    errors = output_error(artifact, held_out, source), output_error(demo_max, held_out, source)
    print(f"{algorithm}: {errors[0]:.4f}, max: {errors[1]:.4f}")
    assert errors[0] < errors[1]
    assert findings_of(artifact, demo, tmp_path) == ()


def test_written_shards_are_safetensors_own(tmp_path):
    tensors = {
        "b.é": torch.randn(3, 5), "a": torch.zeros((), dtype=torch.int64), "c": torch.randn(4).to(torch.bfloat16),
        "d": torch.ones(2, 2, dtype=torch.uint8), "e": torch.zeros(1, dtype=torch.bool),
        "f": torch.ones(3).to(torch.float8_e4m3fn), 'g"': torch.ones(7, dtype=torch.float16),
    }  # fmt: skip
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    write_file(tmp_path / "ours", {name: InMemory(tensor) for name, tensor in tensors.items()})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
