"""The load check where memory ends: nothing is said about the checkpoint."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from fourfold.errors import DeviceError
from fourfold.progress import NoProgress
from fourfold_vllm.load_check import check


def real_lack() -> Exception:
    """What torch raises for more memory than any machine has."""
    try:
        torch.empty(2**58, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError


LACKS = {"gpu": torch.OutOfMemoryError("CUDA out of memory"), "cpu": real_lack(), "python": MemoryError()}


@pytest.mark.parametrize("place", ["build", "load"])
@pytest.mark.parametrize("lack", LACKS)
def test_lack_of_memory_is_no_finding(lack, place, demo_folder, monkeypatch):
    """Raised where vLLM raises it: as its model is built, and as it is loaded."""

    @contextmanager
    def build(checkpoint, findings):
        if place == "build":
            check._refuse(findings, str(checkpoint), LACKS[lack])
            yield None
        else:
            yield "config", "model"

    def load(built, keys, findings, progress):
        check._refuse(findings, "a key", LACKS[lack])

    monkeypatch.setattr(check, "_model", build)
    monkeypatch.setattr(check, "_load", load)
    message = r"demo\S*: the load check ran out of memory; it holds all weights, 0\.02 GiB, on vLLM's device"
    with pytest.raises(DeviceError, match=message):
        check.check_load(demo_folder, NoProgress())
