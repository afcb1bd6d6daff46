"""``fourfold verify --load``: each planted loader trap is named, and sound checkpoints of every kind pass."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourfold.interfaces.load_check import LoadReport, LoadRule

LAYER = "model.language_model.layers.1"
EXPERT = f"{LAYER}.experts.3"
Edit = Callable[[dict[str, torch.Tensor]], None]


def scale(key: str, factor: float) -> Edit:
    def edit(tensors):
        tensors[key] = tensors[key] * factor

    return edit


def drop(*keys: str) -> Edit:
    def edit(tensors):
        for key in keys:
            del tensors[key]

    return edit


def add_expert(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}.experts.999.up_proj.input_scale"] = tensors[f"{EXPERT}.up_proj.input_scale"].clone()


#: Trap -> (layout, what is done, rule, tensor named, words of the message).
TRAPS: dict[str, tuple[str, Edit, LoadRule, str, str]] = {
    "up with a global scale of its own": (
        "modelopt",
        scale(f"{EXPERT}.up_proj.weight_scale_2", 2),
        LoadRule.WEIGHT_SCALE,
        f"{EXPERT}.up_proj.weight_scale_2",
        "vLLM takes the gate's for both",
    ),
    "up with a divisor of its own": (
        "ct",
        scale(f"{EXPERT}.up_proj.weight_global_scale", 2),
        LoadRule.WEIGHT_SCALE,
        f"{EXPERT}.up_proj.weight_global_scale",
        "vLLM takes the gate's for both",
    ),
    "q with a divisor of its own": (
        "ct",
        scale(f"{LAYER}.self_attn.q_proj.weight_global_scale", 2),
        LoadRule.WEIGHT_SCALE,
        "_proj.weight_global_scale",
        "max() of the stored values for all, which are divisors: the smallest scale",
    ),
    "gate and up with input scales of their own": (
        "modelopt",
        scale(f"{EXPERT}.gate_proj.input_scale", 3),
        LoadRule.INPUT_SCALE,
        "_proj.input_scale",
        "vLLM takes the larger input scale for both",
    ),
    "missing input scale of an expert": (
        "modelopt",
        drop(f"{EXPERT}.down_proj.input_scale"),
        LoadRule.UNWRITTEN,
        f"{EXPERT}.down_proj.input_scale",
        "is missing",
    ),
    "missing input scale of an expert, divisors": (
        "ct",
        drop(f"{EXPERT}.up_proj.input_global_scale"),
        LoadRule.UNWRITTEN,
        f"{EXPERT}.up_proj.input_global_scale",
        "is missing",
    ),
    "missing packed weight of an expert": (
        "modelopt",
        drop(f"{EXPERT}.gate_proj.weight"),
        LoadRule.UNWRITTEN,
        f"{EXPERT}.gate_proj.weight",
        "is missing",
    ),
    "missing shard of a fused linear": (
        "modelopt",
        drop(f"{LAYER}.self_attn.q_proj.weight"),
        LoadRule.UNWRITTEN,
        "layers.1.self_attn.qkv_proj.weight",
        "6144 of 12288 bytes are not written by any key; what arrived: "
        f"{LAYER}.self_attn.k_proj.weight, {LAYER}.self_attn.v_proj.weight",
    ),
    "missing buffer": (
        "ct",
        drop(f"{LAYER}.layer_scalar"),
        LoadRule.UNWRITTEN,
        "layers.1.layer_scalar",
        "what arrived: nothing",
    ),
    "zero input scale": (
        "modelopt",
        scale(f"{EXPERT}.down_proj.input_scale", 0),
        LoadRule.UNUSABLE,
        f"{EXPERT}.down_proj.input_scale",
        "is 0; a scale must be positive and finite",
    ),
    "an expert too many": (
        "modelopt",
        add_expert,
        LoadRule.IGNORED,
        f"{LAYER}.experts.999.up_proj.input_scale",
        "writes it to no parameter",
    ),
    "unknown suffix": (
        "ct",
        lambda tensors: tensors.update({f"{EXPERT}.up_proj.weight_shift": torch.zeros(1)}),
        LoadRule.REFUSED,
        f"{EXPERT}.up_proj.weight_shift",
        "has no parameter",
    ),
}
_RUN = """
import json, sys
from pathlib import Path
from fourfold.progress import NoProgress
from fourfold_vllm.load_check.check import check_load
folders, out = json.loads(sys.argv[1]), Path(sys.argv[2])
reports = {name: check_load(Path(f), NoProgress()).model_dump(mode="json") for name, f in folders.items()}
out.write_text(json.dumps(reports))
"""


def plant(source: Path, destination: Path, edit: Edit) -> Path:
    """A copy of ``source`` with its tensors edited."""
    shutil.copytree(source, destination)
    (file,) = destination.glob("*.safetensors")
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return destination


@pytest.fixture(scope="session")
def reports(
    modelopt_layout,
    compressed_tensors_layout,
    weight_only,
    experts_only,
    experts_only_ct,
    mixed,
    vllm_python,
    tmp_path_factory,
) -> dict[str, LoadReport]:
    """All load checks in one process: most of a single one's time is the import of vLLM."""
    folder = tmp_path_factory.mktemp("traps")
    sources = {"modelopt": modelopt_layout, "ct": compressed_tensors_layout}
    folders = sources | {"weight-only": weight_only, "experts-only": experts_only, "experts-only ct": experts_only_ct}
    folders |= mixed
    for number, (trap, (layout, edit, *_)) in enumerate(TRAPS.items()):
        folders[trap] = plant(sources[layout], folder / str(number), edit)
    out, log = folder / "reports.json", folder / "log"
    with log.open("w") as output:
        command = [str(vllm_python), "-c", _RUN, json.dumps({n: str(f) for n, f in folders.items()}), str(out)]
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    assert code == 0, log.read_text()[-4000:]
    return {name: LoadReport.model_validate(report) for name, report in json.loads(out.read_text()).items()}


@pytest.mark.parametrize("trap", TRAPS)
def test_trap_is_named(trap, reports):
    _, _, rule, tensor, message = TRAPS[trap]
    report = reports[trap]
    assert not report.ok
    assert any(
        finding.rule is rule and finding.tensor.endswith(tensor) and message in finding.message
        for finding in report.findings
    ), report.findings
    assert set(report.num_findings) <= {rule, LoadRule.UNUSABLE, LoadRule.INPUT_SCALE}


SOUND = (
    "modelopt", "ct", "weight-only", "experts-only", "experts-only ct", "modelopt attention", "modelopt experts",
    "compressed-tensors attention", "compressed-tensors experts",
)  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_checkpoints_pass(name, reports):
    report = reports[name]
    assert report.ok and not report.findings
    assert report.num_keys > 1000 and report.num_elements > 6_000_000


def test_what_differs_between_backends_is_a_note(reports):
    (note,) = reports["ct"].notes
    assert "input scales differ between the experts of 12 of 12 projections" in note
    assert reports["weight-only"].notes == ()


def test_command(cli, modelopt_layout, tmp_path):
    """The whole way, once: the command, its process in vLLM's environment, its words and its exit code."""
    damaged = plant(modelopt_layout, tmp_path / "damaged", scale(f"{EXPERT}.up_proj.weight_scale_2", 2))
    result = cli("verify", damaged, "--load")
    assert result.returncode == 1
    assert f"LD030 {EXPERT}.up_proj.weight_scale_2: scales of one group differ" in result.stdout
    assert "not loaded right by vLLM 0.32.0: 1 findings" in result.stdout


def test_reciprocal_scales_are_the_verifiers(cli_json, modelopt_layout, tmp_path):
    """A loader cannot tell a scale from its reciprocal; the values do."""

    def invert(tensors):
        for key in list(tensors):
            if key.endswith(("weight_scale_2", "input_scale")):
                tensors[key] = tensors[key].reciprocal()

    document = cli_json("verify", plant(modelopt_layout, tmp_path / "inverted", invert))
    assert document["exit_code"] == 1
    assert any("reciprocal" in finding["message"] for finding in document["findings"]), document["num_findings"]
