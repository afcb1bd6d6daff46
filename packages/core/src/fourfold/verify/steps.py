"""Codes one at a time: which of them could not have been rounded to under the scales they stand beside.

Rounding to nearest leaves every value within half a gap of the grid from its code. Damage to one code, or to the
block scales of one row, stays under any bound on errors of tensors and blocks, but not under this one. It is asked of
the few rows that hold a block over the bound of rounding (:data:`fourfold.verify.fit.MAX_NEAREST_ERROR`), and of
tensors that are off by a common factor.

Error feedback (GPTQ) and learned rounding move codes by more than half a gap on purpose, and many of them: in such rows
these rules see nothing. What they report is the contrary: a row in which nearly every code is the nearest, but a few
are not; or one whose codes all become the nearest under other scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourfold.nvfp4 import BLOCK_SIZE, decode_e2m1, unpack_codes
from fourfold.verify.checkpoint import PARTS
from fourfold.verify.fit import MAX_GAIN, MAX_TENSOR_ERROR, MIN_GAIN

if TYPE_CHECKING:
    import torch

    from fourfold.verify.fit import Fit
    from fourfold.verify.module import ModuleView
    from fourfold.verify.rule import Look

#: Distance a code's value may be rounded from, down and up, by magnitude code, in steps.
_DOWN = (0.25, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 1.0)
_UP = (0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 1.0, float("inf"))
#: Toolchains divide in other orders and precisions; a code this far beyond half a gap is none of their doing.
_SLACK = 1.05
#: A row with more misplaced codes than this was not rounded to nearest.
_MAX_STRAY_SHARE = 0.005
#: So few in a row of any width are strays, where other rows have none to speak of.
_FEW_CODES, _MAX_STRAY_ELSEWHERE, _SAMPLE_ROWS = 2, 0.001, 32
#: Correlation of a decoded row with its source; the worst that GPTQ left on the demo model has 0.76.
_MIN_ROW_CORRELATION = 0.5
#: A tensor with fewer misplaced codes than this, under another scale, was rounded to nearest under that one; a row
#: under block scales guessed from its own codes keeps some more.
_MAX_LEFT_SHARE, _MAX_LEFT_IN_ROW = 0.02, 0.08
#: Factor by which rounding to nearest may shrink or stretch a tensor. GPTQ's errors make it as small as 0.90, and never
#: larger than that; what tells its scales is the gain.
_MAX_STRETCH = 0.02


@dataclass
class _Rows:
    """Rows of a weight and its source: ``codes`` uint8, ``values`` float32 [R, G, 16]; ``steps`` float32 [R, G]."""

    codes: torch.Tensor
    values: torch.Tensor
    steps: torch.Tensor
    global_scale: float

    def stray(self, steps: torch.Tensor) -> torch.Tensor:
        """Bool [R, G, 16]: codes that no rounding to nearest under ``steps`` gives."""
        import torch

        magnitude = (self.codes & 7).to(torch.int64)
        down, up = torch.tensor(_DOWN), torch.tensor(_UP)
        code = decode_e2m1(self.codes)
        sign = torch.where(code < 0, -1.0, 1.0)
        at = self.values / steps.clamp(min=1e-38).unsqueeze(-1)
        # Under code 0 the sign says nothing.
        at = torch.where(magnitude == 0, at.abs(), at * sign) - code.abs()
        far = (at > up[magnitude] * _SLACK) | (at < -down[magnitude] * _SLACK)
        return far & (steps > 0).unsqueeze(-1)

    def own_steps(self) -> torch.Tensor:
        """float32 [R, G]: the steps, float8 times global scale, under which the codes are nearest to the source."""
        import torch

        code = decode_e2m1(self.codes)
        best = (code * self.values).sum(-1) / code.square().sum(-1).clamp(min=1e-30)
        scale = (best / self.global_scale).clamp(2.0**-9, 448).to(torch.float8_e4m3fn).to(torch.float32)
        return scale * self.global_scale


def _rows(module: ModuleView, rows: tuple[int, ...]) -> _Rows | None:
    import torch

    source = module.source_weight
    if source is None or not rows:
        return None
    at, weight = torch.tensor(rows), module.weight
    blocks = (len(rows), -1, BLOCK_SIZE)
    codes = unpack_codes(weight.packed_weight[at]).reshape(blocks)
    steps = weight.block_scale.view(torch.uint8)[at].view(torch.float8_e4m3fn).to(torch.float32) * weight.global_scale
    return _Rows(codes, source[at].to(torch.float32).reshape(blocks), steps, float(weight.global_scale))


def _fit(look: Look, module: ModuleView) -> Fit | None:
    """How the module fits its source, counted as looked at; None where there is no source, or nothing like it."""
    fit = module.fit
    if fit is None or fit.error > MAX_TENSOR_ERROR:
        return None
    look.count()
    return fit


def _wide_rows(look: Look, module: ModuleView) -> tuple[Fit, _Rows] | None:
    """The fit and the rows with a block over the bound of rounding; None where there are none."""
    if (fit := _fit(look, module)) is None or (rows := _rows(module, fit.wide_rows)) is None:
        return None
    return fit, rows


def single_codes_sound(look: Look, module: ModuleView) -> None:
    """In rows where nearly every code is the nearest, all are."""
    if (looked := _wide_rows(look, module)) is None:
        return
    fit, rows = looked
    stray = rows.stray(rows.steps)
    number = stray.flatten(1).sum(1)
    limit = max(_FEW_CODES, int(_MAX_STRAY_SHARE * stray[0].numel()))
    hit = ((number > 0) & (number <= limit)).nonzero().flatten()
    # Error feedback moves the same columns in every row: where others have none moved, this was not its doing.
    others = _rows(module, _sample(module, fit.wide_rows)) if hit.numel() else None
    if others is None or float(others.stray(others.steps).float().mean()) > _MAX_STRAY_ELSEWHERE:
        return
    if hit.numel():
        first = int(hit[0])
        block, place = (int(n) for n in stray[first].nonzero()[0])
        code = float(decode_e2m1(rows.codes[first, block, place]))
        value = float(rows.values[first, block, place] / rows.steps[first, block])
        look.wrong(
            f"{module.name}: row {fit.wide_rows[first]}, column {block * BLOCK_SIZE + place}",
            found=f"code {code:g}", expected=f"the nearest to {value:.3g}",
            message=f"{module.name}: {int(stray[hit].sum())} codes in {hit.numel()} rows are not the nearest to the "
            "source while all others are; bits were flipped",
        )  # fmt: skip


def rows_are_their_own(look: Look, module: ModuleView) -> None:
    """No row holds something else than the source's."""
    import torch

    if (looked := _wide_rows(look, module)) is None:
        return
    fit, rows = looked
    decoded = (decode_e2m1(rows.codes) * rows.steps.unsqueeze(-1)).flatten(1)
    alike = torch.nn.functional.cosine_similarity(decoded, rows.values.flatten(1), dim=1)
    hit = (alike < _MIN_ROW_CORRELATION).nonzero().flatten()
    if hit.numel():
        worst = int(alike.argmin())
        look.wrong(
            f"{module.name}: row {fit.wide_rows[worst]}", found=f"correlation {float(alike[worst]):.2f} to the source",
            expected=f"at least {_MIN_ROW_CORRELATION}",
            message=f"{module.name}: {hit.numel()} rows hold something else than the source: exchanged or overwritten",
        )  # fmt: skip


def _sample(module: ModuleView, without: tuple[int, ...]) -> tuple[int, ...]:
    """Some rows, spread over the weight."""
    count = module.weight.packed_weight.shape[0]
    step = max(1, count // _SAMPLE_ROWS)
    return tuple(row for row in range(0, count, step) if row not in without)


def rows_have_their_scales(look: Look, module: ModuleView) -> None:
    """No row's codes were rounded under other block scales than those they stand beside."""
    if (looked := _wide_rows(look, module)) is None:
        return
    fit, rows = looked
    own = rows.own_steps()
    stray, left = (rows.stray(steps).flatten(1).float().mean(1) for steps in (rows.steps, own))
    other = (own != rows.steps).float().mean(1) > 0
    whole = rows.stray(rows.steps * fit.factor).flatten(1).float().mean(1) <= _MAX_LEFT_IN_ROW
    explained = ~whole & (left <= _MAX_LEFT_IN_ROW) & (stray > 4 * left)
    hit = ((stray > _MAX_STRAY_SHARE) & explained & other).nonzero().flatten()
    if hit.numel():
        name = module.parts[PARTS[1]].name
        look.wrong(
            f"{name}: row {fit.wide_rows[int(hit[0])]}", found="scales under which its codes are not the nearest",
            expected="the scales they were rounded under",
            message=f"{name}: the codes of {hit.numel()} rows fit the source under other block scales than their own; "
            "these were shifted, exchanged or damaged",
        )  # fmt: skip


def global_scale_of_codes(look: Look, module: ModuleView) -> None:
    """Codes and block scales were rounded under this global scale, not under one a few per cent off."""
    fit = _fit(look, module)
    if fit is None or (abs(fit.factor - 1) <= _MAX_STRETCH and MIN_GAIN <= fit.gain <= MAX_GAIN):
        return
    if (rows := _rows(module, tuple(range(min(64, module.weight.packed_weight.shape[0]))))) is None:
        return
    # What rounds to nearest may clip: codes at the end of the grid are the nearest to whatever lies beyond.
    if float(rows.stray(rows.steps).float().mean()) <= 2 * _MAX_LEFT_SHARE:
        return
    name, scale = module.parts[PARTS[2]].name, float(module.weight.global_scale)
    if float(rows.stray(rows.steps * fit.factor).float().mean()) <= _MAX_LEFT_SHARE:
        look.wrong(
            name, found=f"{scale:g} in decode direction", expected=f"about {scale * fit.factor:g}",
            message=f"{name} is off by a factor {1 / fit.factor:.4g}: under the corrected one nearly every code is the "
            "nearest to the source, under the stored one they are not",
        )  # fmt: skip
    elif not (MIN_GAIN <= fit.gain <= MAX_GAIN and fit.factor <= 1 + _MAX_STRETCH):
        look.wrong(
            name, found=f"{scale:g} in decode direction", expected=f"about {scale / fit.gain:g}",
            message=f"{name} is off by a factor of about {fit.gain:.4g}: the decoded weight has that much of the "
            f"source in it, and error feedback (GPTQ) leaves {MIN_GAIN} to {MAX_GAIN}",
        )  # fmt: skip
