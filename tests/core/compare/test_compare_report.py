"""Counts, tables and errors of a report, against numpy on the raw files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from fourfold.compare import CompareReport, Level, Part, Status, render_html, report_tables, verdict
from fourfold.errors import CheckpointError, ConfigError
from fourfold.nvfp4 import BlockScalePolicy

from .builders import DOWN, EXPERTS, GATE, LAYERS
from .conftest import MakeFolder, run
from .test_compare_causes import edited, plant_far_code, plant_signed_zero

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
NUM_MODULES = LAYERS * (4 + 3 + 3 * EXPERTS)


def e4m3(byte: int) -> float:
    exponent, mantissa = byte >> 3, byte & 7
    return 2.0**-6 * mantissa / 8 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + mantissa / 8)


E4M3 = np.array([e4m3(byte) for byte in range(127)])


class Raw:
    """A ``compressed-tensors`` or ``modelopt`` file, decoded from its bytes by table."""

    def __init__(self, folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        self.header = json.loads(content[8 : 8 + length])
        self.data = content[8 + length :]
        self.modelopt = any(name.endswith(".weight_scale_2") for name in self.header)

    def read(self, name: str, dtype: type) -> np.ndarray:
        start, stop = self.header[name]["data_offsets"]
        return np.frombuffer(self.data[start:stop], dtype).reshape(self.header[name]["shape"])

    def parts(self, module: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        packed = self.read(f"{module}.weight" if self.modelopt else f"{module}.weight_packed", np.uint8)
        codes = np.stack((packed & 15, packed >> 4), -1).reshape(packed.shape[0], -1)
        scale = self.read(f"{module}.weight_scale", np.uint8)
        if self.modelopt:
            factor = self.read(f"{module}.weight_scale_2", np.float32).reshape(())
        else:
            factor = np.float32(1) / self.read(f"{module}.weight_global_scale", np.float32).reshape(())
        step = (E4M3[scale] * np.float64(factor)).astype(np.float32)
        return codes, scale, (E2M1[codes] * np.repeat(step.astype(np.float64), 16, -1)).astype(np.float32)


@pytest.fixture
def other(make: MakeFolder) -> Path:
    return make("compressed-tensors", policy=BlockScalePolicy.COMPRESSED_TENSORS, edits={GATE: plant_far_code})


@pytest.mark.parametrize("level", Level)
def test_layouts_of_one_artifact_are_equal_at_every_level(plain: dict[str, Path], level: Level) -> None:
    for a in plain.values():
        for b in plain.values():
            report = run(a, b, level)
            assert report.equal
            assert report.tensors.total == report.tensors.equal_bytes
            assert report.differences == ()
            assert sum(sum(h.counts[1:]) for h in report.histograms[:1]) == 0


def test_counts_against_numpy(plain: dict[str, Path], other: Path) -> None:
    report = run(plain["modelopt"], other)
    a, b = Raw(plain["modelopt"]), Raw(other)
    modules = [n.removesuffix(".weight_scale") for n in a.header if n.endswith(".weight_scale")]
    assert len(modules) == NUM_MODULES
    found = {d.tensor: d for d in report.differences}
    codes = scales = equal_codes = equal_scales = 0
    for module in modules:
        codes_a, scale_a, values_a = a.parts(module)
        codes_b, scale_b, values_b = b.parts(module)
        codes += (differing := int((codes_a != codes_b).sum()))
        scales += (differing_scales := int((scale_a != scale_b).sum()))
        equal_codes += not differing
        equal_scales += not differing_scales
        difference = found.get(f"{module}.weight")
        if difference is None:
            assert np.array_equal(values_a, values_b)
            continue
        assert (difference.codes_differing, difference.block_scales_differing) == (
            differing,
            differing_scales,
        )
        wide_a, wide_b = values_a.astype(np.float64), values_b.astype(np.float64)
        expected = np.linalg.norm(wide_a - wide_b) / np.linalg.norm(wide_b)
        assert difference.relative_difference == pytest.approx(expected, rel=1e-5)
    parts = report.parts
    assert (parts["packed_weight"].differing_elements, parts["packed_weight"].equal) == (codes, equal_codes)
    assert (parts["block_scale"].differing_elements, parts["block_scale"].equal) == (scales, equal_scales)
    relative, code_steps, scale_steps = report.histograms
    assert (sum(code_steps.counts), sum(scale_steps.counts)) == (codes, scales)
    assert sum(relative.counts) == parts["packed_weight"].elements
    assert sum(row.tensors for row in report.by_layer) == report.tensors.total
    assert sum(row.tensors for row in report.by_role) == report.tensors.total
    counts = report.tensors
    assert counts.total == counts.equal_bytes + counts.equal_decoded + counts.differing == NUM_MODULES * 2 + 6


def test_errors_against_the_source(plain: dict[str, Path], other: Path, source: Path) -> None:
    report = run(plain["modelopt"], other, source=source)
    (row,) = [r for r in report.by_role if r.key == "expert down_proj"]
    error = norm = 0.0
    with safe_open(source / "model.safetensors", "pt") as file:
        for layer in range(LAYERS):
            base = f"model.language_model.layers.{layer}.experts"
            weights = file.get_tensor(f"{base}.down_proj").double().numpy()
            for expert in range(EXPERTS):
                decoded = Raw(other).parts(f"{base}.{expert}.down_proj")[2]
                error += float(((decoded - weights[expert]) ** 2).sum())
                norm += float((weights[expert] ** 2).sum())
    assert row.relative_error_b == pytest.approx(math.sqrt(error / norm), rel=1e-6)
    assert row.tensors == LAYERS * EXPERTS


def test_worst_block_is_the_planted_one(plain: dict[str, Path], make: MakeFolder) -> None:
    folder = make("modelopt", edits={GATE: plant_far_code})
    (worst,) = run(plain["modelopt"], folder).worst_blocks
    _, _, a = Raw(plain["modelopt"]).parts(GATE)
    _, _, b = Raw(folder).parts(GATE)
    row, column = np.unravel_index(np.abs(a - b).argmax(), a.shape)
    assert (worst.tensor, worst.row, worst.block) == (f"{GATE}.weight", row, column // 16)
    assert worst.max_abs_difference == pytest.approx(np.abs(a - b).max())
    assert worst.a == tuple(a[worst.row, worst.block * 16 : worst.block * 16 + 16].tolist())
    assert worst.b == tuple(b[worst.row, worst.block * 16 : worst.block * 16 + 16].tolist())


def test_tolerance_is_for_quantized_weights_and_input_scales(
    plain: dict[str, Path], make: MakeFolder, source: Path, tmp_path: Path
) -> None:
    other = make(amax={DOWN: 1.25})
    (difference,) = run(plain["canonical"], other).differences
    exact = difference.relative_difference
    assert exact
    assert run(plain["canonical"], other, Level.TOLERANCE, tolerance=exact * 1.001).equal
    assert not run(plain["canonical"], other, Level.TOLERANCE, tolerance=exact * 0.999).equal
    inputs = make(inputs={DOWN: 2.125})
    assert run(plain["canonical"], inputs, Level.TOLERANCE, tolerance=0.06).equal
    assert not run(plain["canonical"], inputs, Level.TOLERANCE, tolerance=0.05).equal
    assert run(plain["canonical"], source, Level.TOLERANCE, tolerance=0.15).equal
    router = "model.language_model.layers.0.router.proj.weight"
    kept = edited(plain["canonical"], tmp_path / "router", lambda t: t[router].mul_(1.01))
    assert not run(plain["canonical"], kept, Level.TOLERANCE, tolerance=0.15).equal


def test_decoded_level_forgives_other_bytes(plain: dict[str, Path], make: MakeFolder) -> None:
    other = make(edits={DOWN: plant_signed_zero})
    assert not run(plain["canonical"], other, Level.BYTES).equal
    assert run(plain["canonical"], other, Level.DECODED).equal
    assert run(plain["canonical"], other, Level.TOLERANCE).equal


def test_refusals(plain: dict[str, Path], source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tolerance: should be positive \(given: 0\)$"):
        run(source, source, tolerance=0)
    with pytest.raises(ConfigError, match=r"given: nan"):
        run(source, source, tolerance=math.nan)
    with pytest.raises(CheckpointError, match=r"modelopt: is quantized; source must be the unquantized model"):
        run(source, source, source=plain["modelopt"])
    with pytest.raises(CheckpointError, match=r"nowhere: no weights \(model\.safetensors or"):
        run(source, tmp_path / "nowhere")
    broken = edited(plain["modelopt"], tmp_path / "missing", lambda t: t.pop(f"{DOWN}.weight_scale"))
    with pytest.raises(CheckpointError, match=rf"tensor {DOWN}\.weight_scale is missing"):
        run(plain["modelopt"], broken)
    packed = f"{DOWN}.weight"
    narrow = lambda t: t.update({packed: t[packed][:, :8].contiguous()})  # noqa: E731 - a case beside its message, not a function of its own
    wrong = edited(plain["modelopt"], tmp_path / "wrong", narrow)
    with pytest.raises(CheckpointError, match=rf"{DOWN}\.weight_scale is F8_E4M3 \[64, 2\]; .*needs F8_E4M3 \[64, 1\]"):
        run(plain["modelopt"], wrong)
    scale = f"{DOWN}.weight_scale_2"
    wide = edited(plain["modelopt"], tmp_path / "wide", lambda t: t.update({scale: t[scale].repeat(2)}))
    with pytest.raises(CheckpointError, match=rf"{scale} is F32 \[2\]; one F32 number expected"):
        run(plain["modelopt"], wide)
    codes = edited(plain["modelopt"], tmp_path / "codes", lambda t: t.update({packed: t[packed].float()}))
    with pytest.raises(CheckpointError, match=r"is F32 \[64, 16\]; a packed NVFP4 weight is U8 \[O, K/2\]"):
        run(plain["modelopt"], codes)
    stranger = f"{GATE}.weight_global_scale"
    mixed = edited(plain["modelopt"], tmp_path / "mixed", lambda t: t.update({stranger: t[scale].clone()}))
    with pytest.raises(CheckpointError, match=r"mixes compressed-tensors, modelopt"):
        run(plain["modelopt"], mixed)


def test_report_survives_json(plain: dict[str, Path], other: Path, source: Path) -> None:
    report = run(plain["modelopt"], other, source=source)
    assert CompareReport.model_validate_json(report.model_dump_json()) == report
    data = json.loads(report.model_dump_json())
    assert set(data["tensors"]) == {"total", "equal_bytes", "equal_decoded", "differing"}
    assert all(isinstance(count, int) for count in data["causes"].values())
    assert {d["part"] for d in data["differences"]} <= {str(part) for part in Part}


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing(plain: dict[str, Path], other: Path, source: Path) -> None:
    report = run(plain["modelopt"], other, source=source)
    renamed = report.model_copy(update={"a": report.a.model_copy(update={"name": "<script>alert(1)</script>"})})
    text = render_html(renamed)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.links == []
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert page.tags.count("svg") == 7
    assert 'name="viewport"' in text
    assert all(cause in text for cause in report.causes)


def test_tables_for_the_terminal(plain: dict[str, Path], other: Path, source: Path) -> None:
    report = run(plain["modelopt"], other, source=source)
    tables = report_tables(report)
    assert all(len(row) == len(table.header) for table in tables for row in table.rows)
    assert tables[0].title == verdict(report) == "modelopt and compressed-tensors are not equal at level bytes"
    assert (str(Status.DIFFERING), f"{report.tensors.differing} of {report.tensors.total}") in [
        (name, value.split(" (")[0]) for name, value in tables[0].rows
    ]
    equal = report_tables(run(plain["modelopt"], plain["modelopt"]))
    assert [t.title for t in equal] == [
        "modelopt and modelopt are equal at level bytes", "stored parts", "by role", "by layer",
    ]  # fmt: skip


_MEMORY_SCRIPT = """
import sys, threading
from pathlib import Path
import torch
torch.set_num_threads(1)
from fourfold.compare import Level, compare
from fourfold.progress import NoProgress

def anonymous_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

a, b, source = (Path(p) for p in sys.argv[1:4])
done, before = threading.Event(), anonymous_kib()
peak = before
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous_kib())
watcher = threading.Thread(target=watch)
watcher.start()
report = compare(a, b, level=Level.BYTES, source=source, progress=NoProgress())
done.set()
watcher.join()
print(report.tensors.differing, peak - before)
"""


@pytest.mark.timeout(300)
def test_memory_is_bounded_by_rows_of_one_tensor(tmp_path: Path) -> None:
    """A third of a gigabyte in three folders, a tensor of 64 MB among them; mapped pages of the files do not count."""
    environment = {"OMP_NUM_THREADS": "1"}
    script = Path(__file__).parent / "big.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, env=environment)
    sizes = [p.stat().st_size for p in tmp_path.rglob("*.safetensors")]
    assert sum(sizes) > 300 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY_SCRIPT, tmp_path / "a", tmp_path / "b", tmp_path / "source"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    differing, grown_kib = map(int, done.stdout.split())
    assert differing == 2
    # Rows of some 2^19 values at a time, in a few copies: less than the largest tensor.
    assert grown_kib < 64 * 2**10
