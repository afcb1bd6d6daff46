"""What this member registers. Imports nothing heavy: the implementations stand as text."""

from __future__ import annotations

from fourfold.plugins import Environment

EVAL = Environment(name="eval", package="fourfold-eval", extras=("toolchain",), provides="lm_eval")
