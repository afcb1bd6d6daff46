from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fourfold.errors import ModelError
from fourfold.reference.experts import UnfusedExperts
from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser

EXPERTS, HIDDEN, WIDTH = 16, 64, 48


@pytest.fixture
def unfuser() -> ReferenceUnfuser:
    return ReferenceUnfuser(ReferenceUnfuserOptions())


def logits(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids).logits


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def test_names_are_the_canonical_ones(make_model, unfuser):
    model = make_model()
    fused = set(parameters(model))
    unfuser.unfuse(model)
    names = set(parameters(model))
    assert len(names - fused) == 3 * EXPERTS * 3
    assert "model.layers.2.experts.15.down_proj.weight" in names
    assert fused - names == {f"model.layers.{i}.experts.{n}" for i in range(3) for n in ("gate_up_proj", "down_proj")}
    assert set(model.state_dict()) >= names - {"lm_head.weight"}
    linear = model.get_submodule("model.layers.0.experts.5.up_proj")
    assert type(linear) is nn.Linear
    assert linear.bias is None
    assert (linear.in_features, linear.out_features) == (HIDDEN, WIDTH)


def test_weights_are_views_of_the_fused_parameters(make_model, unfuser):
    model = make_model()
    before = {name: p.detach() for name, p in parameters(model).items()}
    unfuser.unfuse(model)
    gate_up, down = (before[f"model.layers.1.experts.{n}"] for n in ("gate_up_proj", "down_proj"))
    expected = {"gate_proj": gate_up[7, :WIDTH], "up_proj": gate_up[7, WIDTH:], "down_proj": down[7]}
    for projection, view in expected.items():
        weight = model.get_submodule(f"model.layers.1.experts.7.{projection}").weight
        assert weight.data_ptr() == view.data_ptr()
        assert weight.untyped_storage().data_ptr() == view.untyped_storage().data_ptr()
        assert torch.equal(weight, view)
        assert weight.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [48, 32, 17])
@pytest.mark.parametrize("all_experts", [False, True])
def test_logits_are_equal_to_the_bit(make_model, input_ids, dtype, width, all_experts):
    model = make_model(dtype, width=width)
    expected = logits(model, input_ids)
    assert expected.isfinite().all()
    unfuser = ReferenceUnfuser(ReferenceUnfuserOptions(calibrate_all_experts=all_experts))
    unfuser.unfuse(model)
    assert torch.equal(logits(model, input_ids), expected)
    unfuser.fuse(model)
    assert torch.equal(logits(model, input_ids), expected)


def test_identity_of_unfuse_and_fuse(make_model, unfuser):
    model = make_model()
    modules, objects = dict(model.named_modules()), parameters(model)
    values = {name: p.detach().clone() for name, p in objects.items()}
    pointers = {name: p.data_ptr() for name, p in objects.items()}
    unfuser.unfuse(model)
    unfuser.fuse(model)
    assert list(dict(model.named_modules()).items()) == list(modules.items())
    assert list(parameters(model)) == list(objects)
    for name, parameter in parameters(model).items():
        assert parameter is objects[name]
        assert parameter.data_ptr() == pointers[name]
        assert torch.equal(parameter, values[name])


def test_values_changed_in_place_or_replaced_are_carried_back(make_model, unfuser):
    model = make_model()
    gate_up = model.get_parameter("model.layers.0.experts.gate_up_proj")
    down = model.get_parameter("model.layers.0.experts.down_proj")
    expected_gate_up, expected_down = gate_up.detach().clone(), down.detach().clone()
    unfuser.unfuse(model)
    experts = model.get_submodule("model.layers.0.experts")
    with torch.no_grad():
        experts.get_submodule("3.up_proj").weight.mul_(2)  # in place: already in the fused storage
    experts.get_submodule("4.down_proj").weight = nn.Parameter(torch.full((HIDDEN, WIDTH), 0.25))
    experts.get_submodule("5.gate_proj").weight.data = torch.full((WIDTH, HIDDEN), 0.5)
    unfuser.fuse(model)
    expected_gate_up[3, WIDTH:] *= 2
    expected_gate_up[5, :WIDTH] = 0.5
    expected_down[4] = 0.25
    assert model.get_parameter("model.layers.0.experts.gate_up_proj") is gate_up
    assert torch.equal(gate_up, expected_gate_up)
    assert torch.equal(down, expected_down)


def test_fuse_follows_a_change_of_dtype_of_all_linears(make_model, unfuser, input_ids):
    model = make_model()
    expected = make_model().to(torch.bfloat16)
    parameter = model.get_parameter("model.layers.0.experts.gate_up_proj")
    unfuser.unfuse(model)
    model.to(torch.bfloat16)
    unfuser.fuse(model)
    assert model.get_parameter("model.layers.0.experts.gate_up_proj") is parameter
    for name, value in parameters(model).items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, parameters(expected)[name]), name


def test_only_routed_tokens_reach_an_expert_and_all_do_on_request(make_model, input_ids):
    model = make_model()
    routed: list[torch.Tensor] = []
    model.get_submodule("model.layers.0.router").register_forward_hook(lambda *call: routed.append(call[2][2]))
    logits(model, input_ids)
    expected = torch.bincount(routed[0].flatten(), minlength=EXPERTS)
    assert expected.sum().item() == input_ids.numel() * 4
    for all_experts in (False, True):
        unfuser = ReferenceUnfuser(ReferenceUnfuserOptions(calibrate_all_experts=all_experts))
        unfuser.unfuse(model)
        seen = torch.zeros(EXPERTS, dtype=torch.int64)
        for expert in range(EXPERTS):

            def count(module, args, expert=expert, seen=seen):
                seen[expert] += args[0].shape[0]

            model.get_submodule(f"model.layers.0.experts.{expert}.down_proj").register_forward_pre_hook(count)
        logits(model, input_ids)
        assert seen.tolist() == ([input_ids.numel()] * EXPERTS if all_experts else expected.tolist())
        unfuser.fuse(model)


def test_works_on_the_meta_device(make_model, unfuser):
    model = make_model(device="meta")
    before = parameters(model)
    unfuser.unfuse(model)
    assert model.get_submodule("model.layers.0.experts.0.down_proj").weight.shape == (HIDDEN, WIDTH)
    unfuser.fuse(model)
    assert all(value is before[name] for name, value in parameters(model).items())


def test_training_mode_is_kept(make_model, unfuser):
    model = make_model().train()
    unfuser.unfuse(model)
    assert model.get_submodule("model.layers.0.experts.0.down_proj").training
    model.eval()
    unfuser.fuse(model)
    assert not model.get_submodule("model.layers.0.experts").training


def test_resident_memory_grows_by_less_than_2_percent():
    """A model of 350 MB, in a process of its own."""
    script = Path(__file__).parent / "measure_unfusing_memory.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    measured = json.loads(result.stdout)
    assert measured["parameter_bytes"] > 300e6
    assert measured["num_linears"] == 4 * 16 * 3
    assert measured["growth_bytes"] < 0.02 * measured["parameter_bytes"], measured
    assert measured["growth_after_fuse_bytes"] < 0.02 * measured["parameter_bytes"], measured


def rename(model: nn.Module, layer: int, old: str, new: str) -> None:
    experts = model.get_submodule(f"model.layers.{layer}.experts")
    parameter = getattr(experts, old)
    delattr(experts, old)
    experts.register_parameter(new, parameter)


def test_experts_under_an_unknown_name_are_refused_with_their_share(make_model, unfuser):
    model = make_model()
    total = sum(p.numel() for p in model.parameters())
    skipped = EXPERTS * 3 * WIDTH * HIDDEN
    rename(model, 1, "gate_up_proj", "w13_stacked")
    before = dict(model.named_modules())
    share = f"{100 * skipped / total:.1f}"
    message = (
        rf"^model.layers.1.experts.w13_stacked looks like fused experts under a name Fourfold does not know; "
        rf"quantizing would skip {share} % of the parameters \(2 tensors\); "
        r"known names: experts.gate_up_proj, experts.down_proj$"
    )
    with pytest.raises(ModelError, match=message):
        unfuser.unfuse(model)
    assert dict(model.named_modules()) == before


def test_a_model_without_experts_and_one_already_unfused_are_refused(make_model, unfuser):
    with pytest.raises(ModelError, match=r"no fused experts \(experts.gate_up_proj\) found"):
        unfuser.unfuse(nn.Sequential(nn.Linear(4, 4), nn.Conv1d(16, 4, 3)))
    model = make_model()
    with pytest.raises(ModelError, match="no un-fused experts found; nothing to fuse"):
        unfuser.fuse(model)
    unfuser.unfuse(model)
    with pytest.raises(ModelError, match="the experts are already un-fused"):
        unfuser.unfuse(model)


def test_another_arrangement_is_refused(make_model, unfuser):
    model = make_model()
    experts = model.get_submodule("model.layers.0.experts")
    experts.down_proj = nn.Parameter(experts.down_proj.detach().transpose(1, 2).contiguous())
    with pytest.raises(
        ModelError, match=r"layers.0.experts: gate_up_proj \[16, 96, 64\] and down_proj \[16, 48, 64\] do"
    ):
        unfuser.unfuse(model)


def test_transposed_biased_offloaded_or_inactive_experts_are_refused(make_model, unfuser):
    model = make_model()
    experts = model.get_submodule("model.layers.1.experts")
    experts.is_transposed = True
    with pytest.raises(ModelError, match=r"layers.1.experts: experts with is_transposed=True are not supported"):
        unfuser.unfuse(model)
    experts.is_transposed = False
    experts._hf_hook = type("Hook", (), {"offload": True})()
    with pytest.raises(ModelError, match=r"layers.1.experts: its parameters are offloaded; load the model without"):
        unfuser.unfuse(model)
    del experts._hf_hook, experts.act_fn
    with pytest.raises(ModelError, match=r"layers.1.experts: experts without an activation act_fn"):
        unfuser.unfuse(model)
    assert not any(isinstance(module, UnfusedExperts) for module in model.modules())


def test_linears_that_cannot_be_written_back_are_refused(make_model, unfuser):
    model = make_model()
    unfuser.unfuse(model)
    expert = model.get_submodule("model.layers.2.experts.9")
    kept = expert.up_proj
    for replacement, message in (
        (nn.Identity(), "experts.9.up_proj: Identity has no weight to write back"),
        (nn.Linear(HIDDEN, WIDTH), "experts.9.up_proj: has a bias, which fused experts cannot hold"),
        (
            nn.Linear(HIDDEN, 8, bias=False),
            r"up_proj: weight has shape \[8, 64\]; fused experts hold \[48, 64\]",
        ),
        (
            nn.Linear(HIDDEN, WIDTH, bias=False, dtype=torch.bfloat16),
            r"layers.2.experts: the experts' weights are not of one kind \(torch.bfloat16 on cpu, ",
        ),
    ):
        expert.up_proj = replacement
        with pytest.raises(ModelError, match=message):
            unfuser.fuse(model)
        assert sum(isinstance(module, UnfusedExperts) for module in model.modules()) == 3
    expert.up_proj = kept
    unfuser.fuse(model)
