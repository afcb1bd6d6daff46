"""Sensitivity of the demo against the whole model in transformers, quantized by hand; its refusals; its memory."""

from __future__ import annotations

import gc
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fourfold.calibration import CalibrationSpec, build_token_set
from fourfold.config import Scheme
from fourfold.demo import model_path
from fourfold.errors import ConfigError, FourfoldError
from fourfold.models.gemma4 import GATE_UP
from fourfold.nvfp4 import BlockScalePolicy, fake_quantize, fake_quantize_activations
from fourfold.pipeline import Pipeline
from fourfold.plan import QuantizeConfig, plan_quantize
from fourfold.plugins import Registry, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser
from fourfold.sensitivity import Divergence, SensitivityConfig, SensitivityReport, measure_sensitivity, read_sensitivity

ROWS = CalibrationSpec(source="demo", samples=2, sequence_length=96, batch_size=1, seed=3)


class LayersHeld(NoProgress):
    """How many decoder layers with weights exist whenever a layer is done, beside those of other tests' models."""

    def __init__(self) -> None:
        self.most = 0
        self._others = self._held()

    def advance(self, amount: int = 1) -> None:
        new = [layer for layer in self._held() if not any(layer is other for other in self._others)]
        self.most = max(self.most, len(new))

    @staticmethod
    def _held() -> list[object]:
        from transformers.models.gemma4.modeling_gemma4 import Gemma4TextDecoderLayer

        gc.collect()
        return [
            thing
            for thing in gc.get_objects()
            if isinstance(thing, Gemma4TextDecoderLayer)
            and not thing.self_attn.q_proj.weight.is_meta
            and thing.enable_moe_block
        ]


@pytest.fixture(scope="module")
def held() -> LayersHeld:
    return LayersHeld()


@pytest.fixture(scope="module")
def report(held: LayersHeld) -> SensitivityReport:
    config = SensitivityConfig(model="demo", calibration=ROWS, divergence=Divergence.ROLES)
    return measure_sensitivity(config, held)


@pytest.fixture(scope="module")
def by_hand() -> dict[str, Any]:
    """Logits of the whole model in float32, without and with every text linear in NVFP4, and each linear's inputs."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(model_path(), dtype=torch.float32).eval()
    layers = model.get_decoder().layers
    # The model's own scale of its embedding is a BF16 number, whatever it computes in.
    embedding = model.get_decoder().embed_tokens
    embedding.embed_scale = embedding.embed_scale.to(torch.bfloat16)
    rows = [batch.input_ids for batch in build_token_set(ROWS, model_path()).batches()]
    with torch.no_grad():
        plain = [model(input_ids=ids).logits[0] for ids in rows]
        ReferenceUnfuser(ReferenceUnfuserOptions()).unfuse(model)
        linears = {
            name: module
            for name, module in layers.named_modules()
            if isinstance(module, nn.Linear) and not name.endswith("router.proj")
        }
        amax, seen = defaultdict(float), defaultdict(int)

        def watch(name: str) -> Any:
            def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
                seen[name] += args[0][..., 0].numel()
                if args[0].numel():
                    amax[name] = max(amax[name], float(args[0].abs().max()))

            return hook

        handles = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
        for ids in rows:
            model(input_ids=ids)
        for handle in handles:
            handle.remove()
        _round_weights(linears)
        w4a16 = [model(input_ids=ids).logits[0] for ids in rows]
        _round_inputs(linears, amax)
        w4a4 = [model(input_ids=ids).logits[0] for ids in rows]
    return {"plain": plain, Scheme.W4A16: w4a16, Scheme.W4A4: w4a4, "seen": seen}


def _round_weights(linears: dict[str, nn.Linear]) -> None:
    def group(name: str) -> str:
        parent, _, last = name.rpartition(".")
        together = last in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
        return f"{parent}.{'gate_up' if last.startswith(('gate', 'up')) else 'qkv'}" if together else name

    tops: dict[str, torch.Tensor] = {}
    for name, linear in linears.items():
        top = linear.weight.abs().amax()
        tops[group(name)] = torch.maximum(top, tops.get(group(name), top))
    for name, linear in linears.items():
        top = tops[group(name)].float()
        rounded = fake_quantize(linear.weight.detach(), global_amax=top, policy=BlockScalePolicy.MODELOPT)
        linear.weight = nn.Parameter(rounded, requires_grad=False)


def _round_inputs(linears: dict[str, nn.Linear], amax: dict[str, float]) -> None:
    of_layer = defaultdict(float)
    for name, value in amax.items():
        if ".experts." in name:
            key = (name.split(".")[0], name.rpartition(".")[2])
            of_layer[key] = max(of_layer[key], value)
    for name, linear in linears.items():
        top = amax.get(name) or of_layer[name.split(".")[0], name.rpartition(".")[2]]
        scale = torch.tensor(top) / 2688

        def round_input(_: nn.Module, args: tuple[torch.Tensor, ...], scale: torch.Tensor = scale) -> Any:
            return (fake_quantize_activations(args[0], scale),) if args[0].numel() else None

        linear.register_forward_pre_hook(round_input)


def check_divergence(report: SensitivityReport, by_hand: dict[str, Any], tolerance: float) -> None:
    kls, agree = [], []
    for p, q in zip(by_hand["plain"], by_hand[report.scheme], strict=True):
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        kls.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
        agree.append(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
    everything = next(row for row in report.roles if row.role == "all")
    assert everything.tokens == 2 * 96
    assert everything.kl == pytest.approx(sum(kls) / 2, rel=tolerance)
    assert everything.top1_agreement == pytest.approx(sum(agree) / 2, abs=tolerance)
    assert {row.role for row in report.roles} == {"all", "attention", "expert", "dense-mlp"}
    assert min(row.kl for row in report.roles) > 0


def test_divergence_is_that_of_the_whole_model(report: SensitivityReport, by_hand: dict[str, Any]) -> None:
    """Loose, as rounding activations is a step function: one last bit moves a code, and the code what follows."""
    check_divergence(report, by_hand, 0.06)


def test_tokens_of_experts_are_those_routed(report: SensitivityReport, by_hand: dict[str, Any]) -> None:
    for layer in range(6):
        counts = report.expert_token_counts[f"model.language_model.layers.{layer}.{GATE_UP.partition('.')[0]}"]
        assert list(counts) == [by_hand["seen"][f"{layer}.experts.{expert}.gate_proj"] for expert in range(128)]
        assert sum(counts) == 8 * 2 * 96


def test_one_layer_in_memory_at_a_time(report: SensitivityReport, held: LayersHeld) -> None:
    assert report.linears
    assert held.most == 1


def test_rows_cover_every_linear_and_errors_are_plausible(report: SensitivityReport, tmp_path: Path) -> None:
    assert sum(row.modules for row in report.linears) == sum(row.modules for row in report.groups) == 2344
    assert len(report.groups) == 18
    for row in report.linears:
        assert 0.08 < row.weight_error < 0.11
        assert row.output_error_w4a16 is not None and row.output_error_w4a4 is not None
        # Rounding the inputs too costs more than the weights alone.
        assert 0.02 < row.output_error_w4a16 < row.output_error_w4a4 < 0.2
    report.write(tmp_path / "sensitivity.json")
    assert read_sensitivity(tmp_path / "sensitivity.json") == report


def quantized(output: Path, **recipe: Any) -> Path:
    """The demo in NVFP4, as the built-in quantizer rounds it, calibrated on the rows it is measured on."""
    registry = Registry(build_plugin_manager())
    config = {"model": "demo", "quantizer": {"name": "reference"}, "recipe": recipe, "calibration": ROWS.model_dump()}
    plan = plan_quantize(QuantizeConfig.parse(config, where=""), registry)
    Pipeline(plan, registry, NoProgress(), output=output, stages=None).run()
    return output


def measured(checkpoint: Path) -> SensitivityReport:
    config = SensitivityConfig(model=str(checkpoint), source="demo", calibration=ROWS, divergence=Divergence.ROLES)
    return measure_sensitivity(config, NoProgress())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(tmp_path_factory.mktemp("sensitivity") / "w4a16", scheme="W4A16")


@pytest.fixture(scope="module")
def own(checkpoint: Path) -> SensitivityReport:
    return measured(checkpoint)


def test_a_checkpoint_is_measured_by_its_own_weights(
    own: SensitivityReport, report: SensitivityReport, by_hand: dict[str, Any]
) -> None:
    assert (own.weights, own.scheme) == ("checkpoint", Scheme.W4A16)
    check_divergence(own, by_hand, 0.002)
    assert own.checkpoint_manifest_sha256 is not None
    for ours, theirs in zip(own.linears, report.linears, strict=True):
        assert ours.weight_error == pytest.approx(theirs.weight_error, rel=1e-6)
        assert ours.output_error_w4a16 == pytest.approx(theirs.output_error_w4a16, rel=1e-5)


def test_modules_of_weights_alone_keep_their_inputs(
    tmp_path: Path, own: SensitivityReport, report: SensitivityReport
) -> None:
    """In a checkpoint of two schemes attention costs what it costs in W4A16, to the last bits, and experts more."""
    mixed = measured(quantized(tmp_path / "mixed", weights_only=["*.self_attn.*"]))
    kl, alone, both = ({row.role: row.kl for row in found.roles} for found in (mixed, own, report))
    assert mixed.scheme is Scheme.W4A4
    assert kl["attention"] == pytest.approx(alone["attention"], rel=1e-6)
    assert both["attention"] > 1.1 * alone["attention"]
    assert kl["expert"] > 1.1 * alone["expert"]


def test_refusals(checkpoint: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": str(checkpoint)}, "is quantized; name the model it was made from with --source"),
        ({"model": "demo", "source": "demo"}, "is not quantized, so it is its own source; leave --source out"),
        ({"model": "demo", "device": "auto"}, "no CUDA GPU is visible here|one device is enough; use cpu or cuda"),
        (
            {"model": str(checkpoint), "source": "demo", "scheme": "W4A4"},
            r"stores no input scales \(W4A16\); leave --scheme out",
        ),
        ({"model": "nobody's"}, "no such model"),
    ]
    for options, message in cases:
        config = SensitivityConfig.parse({"calibration": ROWS.model_dump()} | options, where="")
        with pytest.raises(FourfoldError, match=message):
            measure_sensitivity(config, NoProgress())
    with pytest.raises(ConfigError, match="divergence: should be 'none', 'roles' or 'groups'"):
        SensitivityConfig.parse({"model": "demo", "calibration": ROWS.model_dump(), "divergence": "all"}, where="")
    (tmp_path / "s.json").write_text(json.dumps({"schema_version": 9}), encoding="utf-8")
    with pytest.raises(FourfoldError, match=r"not a sensitivity report of schema 1 \(schema_version 9\)"):
        read_sensitivity(tmp_path / "s.json")
