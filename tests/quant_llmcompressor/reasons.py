"""Why some combinations are refused: llm-compressor alone, asked for them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measures import load, load_unfused
from theirs import ALL_LINEARS
from torch.utils.data import DataLoader

from fourfold.calibration.tokens import TokenSet
from fourfold_llmcompressor.model import shared_kv_replayable

UP, DOWN = r"re:.*language_model.*\.up_proj$", r"re:.*language_model.*\.down_proj$"


def reasons(model: Path, folder: Path, job: dict[str, Any], tokens: TokenSet) -> None:
    """What llm-compressor says to each, as ``Type: message``; empty where it now succeeds."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.autoround import AutoRoundModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    nearest: dict[str, Any] = {"scheme": {"NVFP4": [ALL_LINEARS]}}
    asked: dict[str, tuple[Callable[[Path], Any], list[Any]]] = {
        "awq": (
            load_unfused,
            [AWQModifier(mappings=[AWQMapping(UP, [DOWN])]), QuantizationModifier(**nearest)],
        ),
        "awq-alone": (load_unfused, [AWQModifier(mappings=[AWQMapping(UP, [DOWN])])]),
        "awq-default-mappings": (load_unfused, [AWQModifier(), QuantizationModifier(**nearest)]),
        "smoothquant-linearized": (
            load,
            [SmoothQuantModifier(mappings=[[[DOWN], UP]]), QuantizationModifier(**nearest)],
        ),
        "autoround": (load_unfused, [autoround(AutoRoundModifier, "NVFP4")]),
        "autoround-w4a16": (load_unfused, [autoround(AutoRoundModifier, "NVFP4A16")]),
    }
    batches = [batch._asdict() for batch in tokens.batches(2)]
    answers = {}
    for name, (loader, modifiers) in asked.items():
        loaded = loader(model)
        # All that AutoRound misses for W4A4; for weights alone there is more.
        helped = shared_kv_replayable(loaded) if name == "autoround-w4a16" else contextlib.nullcontext()
        try:
            with helped:
                oneshot(
                    model=loaded,
                    recipe=modifiers,
                    dataset=DataLoader(batches, batch_size=None),
                    processor=object(),
                    moe_calibrate_all_experts=False,
                )
            answers[name] = ""
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            answers[name] = f"{type(error).__name__}: {error}"
    (folder / "reasons.json").write_text(json.dumps(answers))


def autoround(modifier: Any, scheme: str) -> Any:
    return modifier(scheme=scheme, targets=["Linear"], ignore=["re:.*(vision|router|lm_head).*"], iters=1,
                    enable_torch_compile=False)  # fmt: skip
