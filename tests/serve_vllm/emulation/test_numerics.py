"""The plugin's products against core's codec, bit for bit where both are exact, and against float64 sums."""

from __future__ import annotations

import pytest
import torch

from fourfold.nvfp4 import fake_quantize_activations, quantize
from fourfold_vllm.emulation.numerics import decode_blocks, quantize_activations
from fourfold_vllm.emulation.operators import nvfp4_experts, nvfp4_linear

NUM_EXPERTS, H, INTERMEDIATE, T, K = 5, 64, 48, 23, 2


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator()) * scale


@pytest.fixture
def all_codes_and_scales() -> tuple[torch.Tensor, torch.Tensor]:
    """Every byte under every finite E4M3 scale: packed [255, 256], one block scale for 8 bytes."""
    scales = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scales = scales[scales.float().isfinite()]
    packed = torch.arange(256, dtype=torch.uint8).repeat(len(scales), 1)
    return packed, scales.unsqueeze(-1).expand(-1, 32).contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decoding_is_exact_in_every_serving_dtype(all_codes_and_scales, dtype):
    packed, scales = all_codes_and_scales
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).long()
    signed = torch.where(codes >= 8, -1.0, 1.0) * grid[codes % 8]
    expected = signed * scales.double().repeat_interleave(16, dim=-1)
    assert torch.equal(decode_blocks(packed, scales, dtype).double(), expected)


@pytest.mark.parametrize("magnitude", [1e-6, 1e-2, 1.0, 300.0])
def test_activations_round_as_cores_reference(magnitude):
    x = random(T, H, scale=magnitude)
    for input_scale in (torch.tensor(3e-4), torch.tensor(1.7)):
        r = input_scale.reciprocal()
        ours = quantize_activations(x, r)
        block_scale_applied = fake_quantize_activations(x, input_scale)
        # Core divides the block scale by r before the product, we after it: one float32 rounding apart.
        torch.testing.assert_close(ours / r, block_scale_applied, rtol=2.4e-7, atol=0)


def test_a_scale_a_row_is_the_scale_of_that_row():
    x, r = random(T, H), torch.rand(T, generator=generator()) * 1000 + 1
    rows = torch.cat([quantize_activations(x[i : i + 1], r[i]) for i in range(T)])
    assert torch.equal(quantize_activations(x, r), rows)


def test_linear_rounds_once_to_the_serving_dtype():
    """The product of exact operands in float64, rounded to BF16, is what comes out; folding scales in first is not."""
    weight = quantize(random(40, H))
    x = random(3, 2, H).bfloat16()
    out = nvfp4_linear(x, weight.packed_weight, weight.block_scale, weight.global_scale, None, None)
    exact = (x.double() @ weight.dequantize(torch.float64).t()).to(torch.bfloat16)
    assert out.shape == (3, 2, 40) and out.dtype == torch.bfloat16
    assert (out != exact).float().mean() < 0.01  # float32 sums next to a middle of BF16
    folded = x @ weight.dequantize(torch.bfloat16).t()
    assert (folded != exact).float().mean() > 0.1


def test_linear_with_quantized_activations_and_bias():
    weight, bias, input_scale = quantize(random(40, H)), random(40), torch.tensor(2e-3)
    x = random(T, H)
    scale = weight.global_scale * input_scale
    out = nvfp4_linear(x, weight.packed_weight, weight.block_scale, scale, input_scale.reciprocal(), bias)
    expected = fake_quantize_activations(x, input_scale) @ weight.dequantize().t() + bias
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def layer() -> dict:
    """One layer's experts with an input scale each, and a routing that leaves out expert 3."""
    w13, w2 = quantize(random(NUM_EXPERTS, 2 * INTERMEDIATE, H)), quantize(random(NUM_EXPERTS, H, INTERMEDIATE))
    a13 = torch.rand(NUM_EXPERTS, generator=generator()) * 1e-3 + 1e-4
    ids = torch.stack([torch.randperm(NUM_EXPERTS - 1, generator=generator())[:K] for _ in range(T)])
    return {
        "w13": w13,
        "w2": w2,
        "a13": a13,
        "a2": a13.flip(0) * 3,
        "ids": torch.where(ids == 3, NUM_EXPERTS - 1, ids),
        "weights": torch.rand(T, K, generator=generator()),
    }


def run_experts(layer: dict, x: torch.Tensor, *, decode: bool = False, device: str = "cpu") -> torch.Tensor:
    def projection(weight, input_scale):
        packed, block_scale = weight.packed_weight, weight.block_scale
        if decode:
            packed, block_scale = decode_blocks(packed, block_scale, x.dtype), None
        return packed, block_scale, weight.global_scale * input_scale, input_scale.reciprocal()

    arguments = [x, layer["weights"], layer["ids"], None]
    arguments += [*projection(layer["w13"], layer["a13"]), *projection(layer["w2"], layer["a2"])]
    moved = [None if argument is None else argument.to(device) for argument in arguments]
    return nvfp4_experts(*moved, "gelu_tanh").cpu()


def test_experts_are_their_sum_one_token_at_a_time(layer):
    x = random(T, H)
    expected = torch.zeros(T, H)
    for token in range(T):
        for expert, share in zip(layer["ids"][token].tolist(), layer["weights"][token], strict=True):
            inputs = fake_quantize_activations(x[token], layer["a13"][expert])
            gate, up = (layer["w13"].dequantize()[expert] @ inputs).chunk(2)
            hidden = torch.nn.functional.gelu(gate, approximate="tanh") * up
            down = layer["w2"].dequantize()[expert] @ fake_quantize_activations(hidden, layer["a2"][expert])
            expected[token] += share * down
    torch.testing.assert_close(run_experts(layer, x), expected, rtol=1e-4, atol=1e-4)


def test_lazy_and_decoded_weights_and_groups_of_rows_are_the_same_bits(layer, monkeypatch):
    for dtype in (torch.float32, torch.bfloat16):
        x = random(T, H).to(dtype)
        whole = run_experts(layer, x)
        assert torch.equal(run_experts(layer, x, decode=True), whole)
        with monkeypatch.context() as patch:
            patch.setattr("fourfold_vllm.emulation.operators._MAX_ROWS", 7)
            assert torch.equal(run_experts(layer, x), whole)


def test_experts_of_other_ranks_add_nothing(layer):
    """Two ranks' halves add up to the whole; an expert map of -1 is another rank's."""
    x, halves = random(T, H), []
    for local in (range(3), range(3, NUM_EXPERTS)):
        expert_map = torch.full((NUM_EXPERTS,), -1, dtype=torch.int32)
        expert_map[list(local)] = torch.arange(len(local), dtype=torch.int32)
        chosen = slice(local.start, local.stop)
        arguments = [x, layer["weights"], layer["ids"], expert_map]
        for weight, scale in ((layer["w13"], layer["a13"]), (layer["w2"], layer["a2"])):
            arguments += [weight.packed_weight[chosen], weight.block_scale[chosen]]
            arguments += [(weight.global_scale * scale)[chosen], scale.reciprocal()[chosen]]
        halves.append(nvfp4_experts(*arguments, "gelu_tanh"))
    torch.testing.assert_close(halves[0] + halves[1], run_experts(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_cuda_computes_what_the_cpu_does(layer):
    """The tensor cores' float32 sums in another order; a tie may go the other way, so few elements may differ more."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: the emulation's CUDA path was not run")
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        x = random(T, H).to(dtype)
        cpu, cuda = run_experts(layer, x).float(), run_experts(layer, x, device="cuda").float()
        close = torch.isclose(cuda, cpu, rtol=tolerance, atol=tolerance)
        assert close.float().mean() > 0.98
