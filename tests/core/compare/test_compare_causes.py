"""Every cause, planted in one tensor: that tensor shows that cause and no other, and no other tensor differs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourfold.checkpoint.index import TensorFolder
from fourfold.compare import Cause, CompareReport, Difference, Status
from fourfold.config import Scheme
from fourfold.models.gemma4 import read_gemma4
from fourfold.nvfp4 import BlockScalePolicy, NVFP4Weight, pack_codes, quantize, unpack_codes

from .builders import (
    DOWN,
    EXPERTS,
    GATE,
    PREFIX,
    Q_PROJ,
    ROUTER,
    UP,
    Make,
    make_artifact,
    source_tensors,
    write_source,
)
from .conftest import MakeFolder, run


def with_codes(weight: NVFP4Weight, row: int, column: int, code: int) -> NVFP4Weight:
    codes = unpack_codes(weight.packed_weight).clone()
    codes[row, column] = code
    return NVFP4Weight(pack_codes(codes), weight.block_scale, weight.global_scale)


def code_at(weight: NVFP4Weight, wanted: int) -> tuple[int, int]:
    row, column = (unpack_codes(weight.packed_weight) == wanted).nonzero()[0].tolist()
    return row, column


def with_block_scale(weight: NVFP4Weight, row: int, block: int, step: int) -> NVFP4Weight:
    codes = weight.block_scale.view(torch.uint8).clone()
    codes[row, block] += step
    return NVFP4Weight(weight.packed_weight, codes.view(torch.float8_e4m3fn), weight.global_scale)


def plant_neighbour(weight: NVFP4Weight) -> NVFP4Weight:
    return with_codes(weight, *code_at(weight, 2), 3)


def plant_far_code(weight: NVFP4Weight) -> NVFP4Weight:
    return with_codes(weight, *code_at(weight, 2), 15)


def plant_signed_zero(weight: NVFP4Weight) -> NVFP4Weight:
    return with_codes(weight, *code_at(weight, 0), 8)


def plant_scale_step(weight: NVFP4Weight) -> NVFP4Weight:
    return with_block_scale(weight, 1, 1, 1)


def plant_searched_scale(weight: NVFP4Weight) -> NVFP4Weight:
    return with_block_scale(weight, 1, 1, -5)


def plant_zero_block(weight: NVFP4Weight) -> NVFP4Weight:
    scale = weight.block_scale.clone()
    assert not (unpack_codes(weight.packed_weight)[3, 16:32] % 8).any()
    scale[3, 1] = 0.125
    return NVFP4Weight(weight.packed_weight, scale, weight.global_scale)


def only(report: CompareReport) -> Difference:
    """The one tensor that differs; the counts must agree."""
    (difference,) = report.differences
    assert report.tensors.total == report.tensors.equal_bytes + 1
    assert report.causes == dict.fromkeys((str(c) for c in difference.causes), 1)
    assert not report.equal
    return difference


@pytest.mark.parametrize(
    ("module", "edit", "cause", "status"),
    [
        (GATE, plant_neighbour, Cause.CODE_ROUNDING, Status.DIFFERING),
        (GATE, plant_far_code, Cause.CODE, Status.DIFFERING),
        (DOWN, plant_signed_zero, Cause.SIGNED_ZERO, Status.EQUAL_DECODED),
        (Q_PROJ, plant_scale_step, Cause.BLOCK_SCALE_ROUNDING, Status.DIFFERING),
        (UP, plant_searched_scale, Cause.BLOCK_SCALE, Status.DIFFERING),
        (Q_PROJ, plant_zero_block, Cause.ZERO_BLOCK, Status.EQUAL_DECODED),
    ],
)
@pytest.mark.parametrize("layout", ["canonical", "modelopt", "compressed-tensors"])
def test_planted_in_a_weight(
    plain: dict[str, Path],
    make: MakeFolder,
    layout: str,
    module: str,
    edit: object,
    cause: Cause,
    status: Status,
) -> None:
    difference = only(run(plain["modelopt"], make(layout, edits={module: edit})))
    assert difference.tensor == f"{module}.weight"
    assert (difference.causes, difference.status) == ((cause,), status)
    assert difference.codes_differing + difference.block_scales_differing == 1


def test_other_amax(plain: dict[str, Path], make: MakeFolder) -> None:
    difference = only(run(plain["canonical"], make(amax={DOWN: 1.25})))
    assert difference.causes == (Cause.AMAX,)
    assert difference.scale_ratio == pytest.approx(0.8, rel=0.005)
    assert "A's is 0.8" in difference.detail
    # Every block scale moved and most codes stayed: all of it as the scales make it, none a cause of its own.
    assert difference.block_scales_differing > 0
    assert f"{difference.codes_differing} of them as the scales make them" in difference.detail


def test_one_side_shares_the_scale_group(plain: dict[str, Path], make: MakeFolder, source: Path) -> None:
    own = make(share=False)
    report = run(plain["canonical"], own, source=source)
    assert report.causes.keys() == {Cause.SCALE_GROUP}
    names = {d.tensor for d in report.differences}
    # Of every group all but the member that holds the largest: one of gate and up, two of q, k and v.
    assert len(names) == 2 * (EXPERTS + 1 + 2)
    assert not [n for n in names if "down_proj" in n or "o_proj" in n]
    assert all("A shares the largest of the scale group" in d.detail for d in report.differences)
    assert {d.rule_a for d in report.differences} == {"fourfold, amax of the scale group"}
    assert {d.rule_b for d in report.differences} == {"fourfold, own amax"}
    swapped = run(own, plain["canonical"])
    assert all("B shares the largest of the scale group" in d.detail for d in swapped.differences)


def test_amax_rounded_in_16_bits(plain: dict[str, Path], make: MakeFolder, source: Path) -> None:
    other = make("compressed-tensors", policy=BlockScalePolicy.COMPRESSED_TENSORS)
    report = run(plain["modelopt"], other, source=source)
    weights = [d for d in report.differences if d.tensor.endswith(".weight")]
    inputs = [d for d in report.differences if d.tensor.endswith(".input_global_scale")]
    assert {c for d in weights for c in d.causes} == {
        Cause.GLOBAL_SCALE_ROUNDING,
        Cause.BLOCK_SCALE_ROUNDING,
        Cause.ZERO_BLOCK,
        # block x scale here, block / divisor there: a weight on the tie goes the other way by one float32 step.
        Cause.CODE_ROUNDING,
    }
    # Where 2688 / amax happens to be exact in BF16, only the BF16 quotient of the block scales is left.
    exact = [d for d in weights if Cause.GLOBAL_SCALE_ROUNDING not in d.causes]
    assert all(d.scale_ratio == 1 for d in exact)
    assert Cause.ZERO_BLOCK in next(d for d in weights if d.tensor == f"{Q_PROJ}.weight").causes
    # 2688 / 2 is exact in BF16, so the input scales agree.
    assert not inputs
    assert report.rules is not None
    assert report.rules.a == {"modelopt, amax of the scale group": 38}
    assert report.rules.b == {"compressed-tensors, amax of the scale group": 38}
    assert report.rules.explained == report.rules.differing == len(weights)


def test_flushed_block(tmp_path: Path) -> None:
    """A block whose scale rounds to zero: kept by one producer, lost by the other."""
    tensors = source_tensors()
    tensors[f"{Q_PROJ}.weight"][5, 0:16] = 1e-6
    source = write_source(tmp_path / "tiny-block", tensors)
    kept = make_artifact(source, tmp_path / "kept", Make())

    def flush(weight: NVFP4Weight) -> NVFP4Weight:
        codes, scale = unpack_codes(weight.packed_weight).clone(), weight.block_scale.clone()
        assert scale[5, 0] == 2.0**-9
        codes[5, 0:16], scale[5, 0] = 0, 0.125
        return NVFP4Weight(pack_codes(codes), scale, weight.global_scale)

    assert unpack_codes(kept.weight(Q_PROJ).packed_weight)[5, 0:16].any()
    flushed = make_artifact(source, tmp_path / "flushed", Make(edits={Q_PROJ: flush}))
    assert only(run(kept.path, flushed.path)).causes == (Cause.ZERO_BLOCK,)


@pytest.mark.parametrize(
    ("inputs", "cause", "text"),
    [
        ({DOWN: 3.0}, Cause.INPUT_AMAX, "A's is 0.666667 of B's"),
        ({GATE: 1.0}, Cause.INPUT_SCALE_GROUP, "A shares the largest of the scale group"),
        (
            {f"{PREFIX}.1.experts.{e}.down_proj": 1.0 for e in (0, 1, 2)},
            Cause.INPUT_SCALE_GROUP,
            "layer's experts",
        ),
    ],
)
def test_other_input_scale(
    plain: dict[str, Path], make: MakeFolder, inputs: dict[str, float], cause: Cause, text: str
) -> None:
    report = run(plain["modelopt"], make("compressed-tensors", inputs=inputs))
    assert {d.tensor for d in report.differences} == {f"{m}.input_global_scale" for m in inputs}
    assert all(d.causes == (cause,) and text in d.detail for d in report.differences)


def test_input_amax_rounded_in_16_bits(make: MakeFolder) -> None:
    inputs = {DOWN: 2.765625}
    a = make("modelopt", inputs=inputs)
    b = make("compressed-tensors", inputs=inputs, policy=BlockScalePolicy.COMPRESSED_TENSORS)
    found = {d.tensor: d.causes for d in run(a, b).differences if "input" in d.tensor}
    assert found == {f"{DOWN}.input_global_scale": (Cause.INPUT_SCALE_ROUNDING,)}


def test_input_scale_from_a_fallback(plain: dict[str, Path], make: MakeFolder) -> None:
    difference = only(run(plain["canonical"], make(inputs={DOWN: 4.0}, fallbacks=(DOWN,))))
    assert difference.causes == (Cause.INPUT_FALLBACK, Cause.INPUT_AMAX)
    assert "B's is a fallback (layer-max: saw 0 tokens)" in difference.detail


def test_input_scales_in_one_only(plain: dict[str, Path], make: MakeFolder) -> None:
    report = run(plain["modelopt"], make("modelopt", scheme=Scheme.W4A16))
    assert report.causes == {Cause.INPUT_SCALE_MISSING: 38}
    assert {d.detail for d in report.differences} == {"A alone stores one, and quantizes activations"}


def test_last_bit_of_a_reciprocal(plain: dict[str, Path], tmp_path: Path) -> None:
    # Near the top of a binade 17 % of float32 numbers are no number's reciprocal; this is one.
    scale = torch.tensor(1.9921875 * 2.0**-15)
    back = scale.reciprocal().reciprocal()
    assert back != scale
    name = f"{DOWN}.weight_scale_2"
    first = edited(plain["modelopt"], tmp_path / "first", lambda t: t.update({name: scale}))
    second = edited(plain["modelopt"], tmp_path / "second", lambda t: t.update({name: back}))
    difference = only(run(first, second))
    assert difference.causes == (Cause.RECIPROCAL,)
    assert difference.scale_ratio != 1


def edited(folder: Path, target: Path, edit: object) -> Path:
    """A copy of a one-file folder with its tensors changed."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def test_kept_tensors(plain: dict[str, Path], tmp_path: Path) -> None:
    scalar = f"{PREFIX}.0.layer_scalar"

    def check(name: str, edit: object, *causes: Cause, status: Status = Status.DIFFERING) -> Difference:
        folder = edited(plain["compressed-tensors"], tmp_path / name, edit)
        difference = only(run(plain["modelopt"], folder))
        assert (difference.causes, difference.status) == (causes, status)
        return difference

    check("value", lambda t: t[ROUTER].mul_(1.5), Cause.VALUE)
    same = check("dtype", lambda t: t.update({ROUTER: t[ROUTER].float()}), Cause.DTYPE, status=Status.EQUAL_DECODED)
    assert same.detail == "BF16 and F32"
    check("both", lambda t: t.update({ROUTER: t[ROUTER].float() * 2}), Cause.DTYPE, Cause.VALUE)
    shape = check("shape", lambda t: t.update({scalar: t[scalar].reshape(1, 1)}), Cause.SHAPE)
    assert shape.detail == "[1] and [1, 1]"
    check("gone", lambda t: t.pop(scalar), Cause.ONLY_IN_A)
    check("new", lambda t: t.update({"lm_head.weight": torch.ones(2, 2)}), Cause.ONLY_IN_B)
    nan = edited(plain["modelopt"], tmp_path / "nan", lambda t: t[ROUTER].fill_(torch.nan))
    assert run(nan, nan).equal


def test_against_the_unquantized_model(plain: dict[str, Path], source: Path) -> None:
    report = run(plain["modelopt"], source)
    weights = [d for d in report.differences if d.tensor.endswith(".weight")]
    assert len(weights) == len(report.differences) == 38
    assert {d.causes for d in weights} == {(Cause.QUANTIZED_IN_ONE,)}
    assert {d.detail for d in weights} == {"NVFP4 in A alone"}
    assert all(0.07 < (d.relative_difference or 0) < 0.12 for d in weights)


def test_rule_of_searched_scales(plain: dict[str, Path], make: MakeFolder, source: Path) -> None:
    """Block scales from a search with nearest codes have a rule; adjusted codes have none."""
    folder = TensorFolder(source)
    weight = read_gemma4(folder).linears[DOWN].read(folder)

    def search(stored: NVFP4Weight) -> NVFP4Weight:
        scale = (stored.block_scale.float() * 0.8).to(torch.float8_e4m3fn)
        return quantize(weight, global_scale=stored.global_scale, block_scale=scale)

    report = run(plain["canonical"], make(edits={DOWN: search, GATE: plant_far_code}), source=source)
    found = {d.tensor: d for d in report.differences}
    assert found[f"{DOWN}.weight"].rule_b == "searched scales, nearest codes"
    assert Cause.BLOCK_SCALE in found[f"{DOWN}.weight"].causes
    assert found[f"{GATE}.weight"].rule_b is None
    assert report.rules is not None
    assert (report.rules.differing, report.rules.explained) == (2, 1)
    assert report.rules.b == {
        "fourfold, amax of the scale group": 36,
        "searched scales, nearest codes": 1,
        "none": 1,
    }
