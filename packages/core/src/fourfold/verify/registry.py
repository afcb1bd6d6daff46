"""All rules: the one table that the verifier, the command line and the documentation read.

Ids are never used twice and never change; a rule that goes leaves a gap. The tens say the subject: 00 files, 02
names and experts, 04 shapes, 05 scales, 07 codes, 08 values, 10 config, 12 side files, 13 manifest.
"""

from __future__ import annotations

from fourfold.verify.registry_files import FILE_RULES, RECORD_RULES, SIDE_FILE_RULES
from fourfold.verify.registry_names import CONFIG_RULES, NAME_RULES
from fourfold.verify.registry_values import CODE_RULES, SCALE_RULES, SHAPE_RULES, VALUE_RULES
from fourfold.verify.rule import Rule

RULES: tuple[Rule, ...] = (
    *FILE_RULES, *NAME_RULES, *SHAPE_RULES, *SCALE_RULES, *CODE_RULES, *VALUE_RULES,
    *CONFIG_RULES, *SIDE_FILE_RULES, *RECORD_RULES,
)  # fmt: skip


def get_rule(rule_id: str) -> Rule:
    """The rule of that id; KeyError for an unknown one."""
    return {rule.id: rule for rule in RULES}[rule_id]
