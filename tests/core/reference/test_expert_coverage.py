from __future__ import annotations

import pytest
import torch
from torch import nn

from fourfold.calibration import ExpertCoverage
from fourfold.errors import CalibrationError
from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser

EXPERTS, TOP_K = 16, 4
NAMES = [f"model.layers.{layer}.experts" for layer in range(3)]


def run(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    with torch.no_grad(), ExpertCoverage(model, EXPERTS) as coverage:
        for batch in batches:
            model(**batch)
    return coverage.expert_token_count


def by_hand(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Counted one token at a time from what the routers return."""
    counts = {name: torch.zeros(EXPERTS, dtype=torch.int64) for name in NAMES}
    handles, keep = [], [torch.ones(0)]
    for name in NAMES:

        def count(module, args, output, name=name):
            for token, experts in enumerate(output[2].tolist()):
                if keep[0][token]:
                    for expert in experts:
                        counts[name][expert] += 1

        handles.append(model.get_submodule(name.replace("experts", "router")).register_forward_hook(count))
    with torch.no_grad():
        for batch in batches:
            keep[0] = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).flatten()
            model(**batch)
    for handle in handles:
        handle.remove()
    return counts


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def batches(input_ids) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": input_ids}, {"input_ids": input_ids.flip(0)[:2, :30]}]


@pytest.mark.parametrize("kind", ["fused eager", "fused grouped_mm", "un-fused", "all experts"])
def test_counts_equal_those_by_hand(make_model, batches, kind):
    model = make_model()
    expected = by_hand(model, batches)
    if kind == "fused grouped_mm":
        model.config._experts_implementation = "grouped_mm"
    elif not kind.startswith("fused"):
        ReferenceUnfuser(ReferenceUnfuserOptions(calibrate_all_experts=kind == "all experts")).unfuse(model)
    counts = run(model, batches)
    assert equal(counts, expected)
    for count in counts.values():
        assert (count.dtype, tuple(count.shape)) == (torch.int64, (EXPERTS,))
        assert count.sum().item() == TOP_K * sum(batch["input_ids"].numel() for batch in batches)


def test_padding_does_not_count(make_model, input_ids):
    model = make_model()
    mask = torch.ones_like(input_ids)
    mask[0, 20:] = 0
    mask[2, 45:] = 0
    masked = [{"input_ids": input_ids, "attention_mask": mask}]
    counts = run(model, masked)
    assert equal(counts, by_hand(model, masked))
    assert counts[NAMES[0]].sum().item() == TOP_K * int(mask.sum())


def test_a_mask_holds_for_its_own_call_only(make_model, input_ids):
    model = make_model()
    mask = torch.zeros_like(input_ids)
    mask[:, :10] = 1
    both = run(model, [{"input_ids": input_ids, "attention_mask": mask}, {"input_ids": input_ids}])
    assert both[NAMES[2]].sum().item() == TOP_K * (30 + 150)


def test_counting_stops_on_leaving_and_leaves_no_hook(make_model, batches):
    model = make_model()
    with ExpertCoverage(model, EXPERTS) as coverage:
        pass
    with torch.no_grad():
        model(**batches[0])
    assert all(count.sum() == 0 for count in coverage.expert_token_count.values())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


class Wrapped(nn.Module):
    """An experts module of another make, called with keywords."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = Wrapped()

    def forward(self, index, attention_mask=None):
        return self.experts(torch.zeros(len(index), 4), top_k_index=index, top_k_weights=index)


def test_a_wrapper_with_the_same_signature_is_counted():
    model = Holder()
    with ExpertCoverage(model, 3) as coverage:
        model(torch.tensor([[0, 2], [2, 1]]))
    assert {name: count.tolist() for name, count in coverage.expert_token_count.items()} == {"experts": [1, 1, 2]}


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(CalibrationError, match="no module named 'experts' in the model; nothing to count"):
        ExpertCoverage(nn.Linear(2, 2), 3)
    model, index = Holder(), torch.tensor([[0, 2], [2, 1]])
    with (
        ExpertCoverage(model, 3),
        pytest.raises(CalibrationError, match=r"2 tokens under an attention mask of \[1, 3\]"),
    ):
        model(index, attention_mask=torch.ones(1, 3))
    with ExpertCoverage(model, 2), pytest.raises(CalibrationError, match="experts: routed to expert 2 of 2"):
        model(index)
