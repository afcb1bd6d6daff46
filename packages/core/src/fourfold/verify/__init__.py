"""The verifier: reads a checkpoint's values, not its word, against the rules a server relies on."""

from fourfold.verify.engine import verify_checkpoint
from fourfold.verify.registry import RULES, get_rule
from fourfold.verify.report import Finding, VerifyReport
from fourfold.verify.rule import Rule

__all__ = ["RULES", "Finding", "Rule", "VerifyReport", "get_rule", "verify_checkpoint"]
