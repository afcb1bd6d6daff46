"""What a report and a card say is what the records hold, and what is not there is called absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from core.report.measured import write_everything
from fourfold.errors import FourfoldError
from fourfold.plan import QuantizeConfig
from fourfold.plugins import Registry
from fourfold.report import Measured, collect, write_card, write_report
from fourfold.study import StudyResults
from fourfold.study.results import CellResult
from fourfold.study.spec import parse_study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_everything(tmp_path / "run")
    return tmp_path / "run"


def test_the_markdown_has_every_figure(folder: Path) -> None:
    write_report(collect(folder), folder / "report")
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    for figure in (
        "87.79 %",
        "84.23 %",
        "95.9 % (93.94 to 97.94)",
        "said in words",
        "0.0123 nats",
        "23.3 tokens/s",
        "53 ms",
    ):
        assert figure in text, figure
    for fact in (
        "GPU Nine",
        "c" * 64,
        "11, 1, gsm8k to 1,000 prompts, kl to 200 prompts",
        "128 experts, from 0 to 127",
    ):
        assert fact in text, fact
    assert "## Not measured" not in text


def test_results_are_versioned_and_come_back(folder: Path) -> None:
    measured = collect(folder)
    write_report(measured, folder / "report")
    data = json.loads((folder / "report" / "results.json").read_text(encoding="utf-8"))
    assert data["schema_version"] == 1
    assert data["gpus"] == ["GPU Nine"]
    assert Measured.parse(data, where="") == measured
    # A second report does not read the first.
    assert collect(folder) == measured


def test_what_was_not_measured_is_said_and_not_made_up(folder: Path) -> None:
    for name in ("bench.json", "sensitivity.json"):
        (folder / name).unlink()
    measured = collect(folder)
    write_report(measured, folder / "report")
    for file in ("report.md", "report.html"):
        text = (folder / "report" / file).read_text(encoding="utf-8")
        assert "no sensitivity report" in text
        assert "no bench and no evaluation of it" in text
        assert "Errors by layer" not in text
        assert "tokens/s" not in text.replace("tokens/s)", "")


def test_a_page_needs_nothing_else(folder: Path) -> None:
    write_report(collect(folder), folder / "report")
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    for forbidden in ("<script", "http:", "https:", "@import", "url(", "src=", "<link"):
        assert forbidden not in page, forbidden
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_the_card_has_the_published_rows_that_were_measured(folder: Path, registry: Registry) -> None:
    absent = write_card(
        collect(folder), folder, folder / "README.md", registry, checkpoint=None,
        base_model="google/gemma-4-26B-A4B-it", license_name="apache-2.0",
    )  # fmt: skip
    text = (folder / "README.md").read_text(encoding="utf-8")
    size = sum(path.stat().st_size for path in (folder / "ckpt" / "tiny-NVFP4").iterdir())
    for row in (
        f"| Size on disk | 15.00 MB | {size / 1e6:.2f} MB |",
        f"| Compression | - | {15e6 / size:.2f}x |",
        "| Architecture | MoE: 128 experts, 8 active/token | MoE: 128 experts, 8 active/token |",
        "| Context window | 4,096 tokens | 4,096 tokens |",
        "| Quantization | - | W4A4 (FP4 weights and activations) |",
        "| GSM8K (flexible-extract) | 87.79% | 84.23% | 95.9% |",
        "| GSM8K (strict-match) | 86.96% | 82.64% | 95.0% |",
        "| demo-vision | 50.00% | 50.00% | 100.0% |",
        "| Average | 74.92% | 72.29% | 96.5% |",
        "| Tokens/s (1000-token generation) | 23.3 | 48.2 | 2.07x |",
        "| TTFT, 1024-token prompt (ms) | 97 | 53 | 1.83x |",
        "| `--moe-backend marlin` | no FP4 here |",
        "SOME=value vllm serve tiny-NVFP4 --moe-backend marlin",
        "--algorithm gptq --targets all-linear --exclude '*.layers.5.mlp.*' --calibration demo --samples 64",
        "from 0 to 127, 64 on average; 1 of 128 experts got none",
        "Worse than BF16 beyond chance: GSM8K (flexible-extract), GSM8K (strict-match)",
        "Cut by a limit: gsm8k to 1,000 prompts, kl to 200 prompts",
    ):
        assert row in text, row
    wanted = [f"Quality: IFEval {which}" for which in ("prompt-strict", "inst-strict", "prompt-loose", "inst-loose")]
    assert list(absent) == wanted
    assert f"Not measured, and so not in this card: {'; '.join(wanted)}." in text
    assert "| IFEval" not in text


def write_study(folder: Path, **of_the_cell: object) -> None:
    """A study's results whose one cell is the checkpoint."""
    study = parse_study(
        {
            "name": "a-study", "summary": "for a test", "model": "demo",
            "cells": [{"name": "tiny", "quantizer": "reference", "layout": "modelopt"}],
        }
    )  # fmt: skip
    cell = {
        "name": "tiny", "status": "done", "identity": "0" * 64, "config": QuantizeConfig(model="demo"),
        "checkpoint": "ckpt/tiny-NVFP4", "bytes_before": 3, "bytes_after": 1, "checks": 5000,
    }  # fmt: skip
    results = StudyResults(
        study=study, study_sha256=study.sha256(), source_files={}, packages={},
        cells=(CellResult.model_validate(cell | of_the_cell),),
    )  # fmt: skip
    results.write(folder)


@pytest.mark.parametrize(
    ("verified", "findings", "said"),
    [
        (True, 0, "Verified by value against its source: 5,000 checks, no finding."),
        (
            True,
            14,
            "Verified by value against its source: 5,000 checks, nothing wrong, and 14 doubts: what no file can settle "
            "and scores decide (`fourfold verify` names each).",
        ),
        (False, 3, "**Not right** by value against its source: 3 findings in 5,000 checks."),
    ],
)
def test_what_the_verifier_found_is_said(
    verified: bool, findings: int, said: str, folder: Path, registry: Registry
) -> None:
    write_study(folder, verified=verified, findings=findings)
    measured = collect(folder)
    write_card(measured, folder, folder / "README.md", registry, checkpoint=None, base_model=None, license_name="mit")
    assert said in (folder / "README.md").read_text(encoding="utf-8")
    write_report(measured, folder / "report")
    report = (folder / "report" / "report.md").read_text(encoding="utf-8")
    doubtful = verified and findings > 0
    assert ("| yes, 14 doubts |" in report) is doubtful
    assert ("A doubt is what the verifier cannot settle" in report) is doubtful


def test_the_hub_takes_the_front_matter(folder: Path, registry: Registry) -> None:
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    write_card(
        collect(folder), folder, path, registry, checkpoint="tiny-NVFP4", base_model="google/gemma-4-26B-A4B-it",
        license_name="apache-2.0",
    )  # fmt: skip
    card = ModelCard.load(path)
    data = card.data.to_dict()
    assert data["base_model"] == "google/gemma-4-26B-A4B-it"
    assert data["base_model_relation"] == "quantized"
    assert data["license"] == "apache-2.0"
    assert data["pipeline_tag"] == "image-text-to-text"
    assert data["quantized_by"] == "fourfold"
    assert {"nvfp4", "modelopt", "gemma4"} <= set(data["tags"])
    assert card.text.lstrip().startswith("# tiny-NVFP4")


def test_a_card_of_weights_nobody_measured_says_so(folder: Path, registry: Registry) -> None:
    shutil.rmtree(folder / "eval")
    (folder / "bench.json").unlink()
    absent = write_card(
        collect(folder), folder, folder / "README.md", registry, checkpoint=None, base_model=None, license_name="mit"
    )
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "No benchmark was measured against BF16." in text
    assert "Speed & Size: Tokens/sec" in absent
    assert "Key Specs: Size on disk" in absent
    assert "| GSM8K" not in text
    assert "base_model" not in text.split("---")[1]


def test_a_card_says_which_modules_are_of_weights_alone(folder: Path, registry: Registry) -> None:
    path = folder / "ckpt" / "tiny-NVFP4" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["recipe"]["weights_only"] = ["*.self_attn.*"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    write_card(
        collect(folder), folder, folder / "README.md", registry, checkpoint=None, base_model=None, license_name="mit"
    )
    text = (folder / "README.md").read_text(encoding="utf-8")
    scheme = "W4A4 (FP4 weights and activations); W4A16 (FP4 weights, 16-bit activations) in `*.self_attn.*`"
    assert f"| Quantization | - | {scheme} |" in text
    assert f"model. {scheme}." in text
    assert "--weights-only '*.self_attn.*'" in text


def test_a_card_has_the_scores_of_every_evaluation(folder: Path, registry: Registry) -> None:
    record = json.loads((folder / "eval" / "eval.json").read_text(encoding="utf-8"))
    moved = [task for task in record["tasks"] if task["task"] == "gsm8k"]
    (folder / "second").mkdir()
    for place, is_moved in (("eval", False), ("second", True)):
        part = {key: [e for e in record[key] if (e["task"] == "gsm8k") is is_moved] for key in ("tasks", "comparisons")}
        (folder / place / "eval.json").write_text(json.dumps(record | part), encoding="utf-8")
    assert moved
    path = folder / "README.md"
    make = {"checkpoint": None, "base_model": None, "license_name": "mit"}
    write_card(collect(folder), folder, path, registry, **make)
    text = path.read_text(encoding="utf-8")
    assert "| GSM8K (strict-match) | 86.96% | 82.64% |" in text
    assert "| demo-vision | 50.00% | 50.00% |" in text
    (folder / "eval" / "eval.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(FourfoldError, match=r"'tiny-NVFP4': task 'gsm8k' was evaluated 2 times; leave one of the eval"):
        write_card(collect(folder), folder, path, registry, **make)


def test_a_report_does_not_take_the_place_of_a_record(folder: Path, tmp_path: Path) -> None:
    measured = collect(folder)
    for record in ("results.json", "eval.json", "manifest.json", "bench.json"):
        place = tmp_path / record.partition(".")[0]
        place.mkdir()
        (place / record).write_text("theirs", encoding="utf-8")
        with pytest.raises(FourfoldError, match=f"holds {record}, which is no report's; give --output another folder"):
            write_report(measured, place)
        assert [path.name for path in place.iterdir()] == [record]
        assert (place / record).read_text(encoding="utf-8") == "theirs"


def test_refusals(folder: Path, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "c.md"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FourfoldError, match="no such folder; give the output of fourfold study run or fourfold eval"):
        collect(tmp_path / "nowhere")
    with pytest.raises(FourfoldError, match=r"nothing measured there; expected results\.json of a study, eval\.json"):
        collect(tmp_path / "empty")
    with pytest.raises(FourfoldError, match=r"no checkpoint 'other' below .*; give one of: tiny-NVFP4"):
        write_card(collect(folder), folder, path, registry, checkpoint="other", base_model=None, license_name="mit")
    shutil.copytree(folder / "ckpt" / "tiny-NVFP4", folder / "ckpt" / "second")
    with pytest.raises(FourfoldError, match=r"several checkpoints below .*; give one of: second, tiny-NVFP4"):
        write_card(collect(folder), folder, path, registry, checkpoint=None, base_model=None, license_name="mit")
    (folder / "bench.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FourfoldError, match=r"bench.json.machine: Field required"):
        collect(folder)
