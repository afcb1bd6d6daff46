"""Options of the built-in backends; import-light, as the command line reads them."""

from __future__ import annotations

from fourfold.config import Options


class ReferenceUnfuserOptions(Options):
    """``calibrate_all_experts`` shows every expert every token; outputs stay those of the routed ones."""

    calibrate_all_experts: bool = False
