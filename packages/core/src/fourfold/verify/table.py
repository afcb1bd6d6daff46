"""The documentation's table of rules, rendered from the registry.

``python -m fourfold.verify.table docs/verifier.md`` writes it between the page's two markers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fourfold.errors import ConfigError
from fourfold.verify.registry import RULES

BEGIN, END = "<!-- rules: begin -->", "<!-- rules: end -->"


def render_rules() -> str:
    """A Markdown table: id, title, why a server cares, what the rule cannot do without."""
    lines = ["| rule | what holds | why a server cares | skipped when |", "|---|---|---|---|"]
    lines += [
        f"| {rule.id} | {rule.title} | {rule.why} | {'; '.join(map(str, rule.needs)) or '-'} |"
        for rule in sorted(RULES, key=lambda rule: rule.id)
    ]
    return "\n".join(lines) + "\n"


def update_page(text: str, table: str) -> str:
    """``text`` with what stands between the markers replaced by ``table``."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"the page lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(update_page(page.read_text(encoding="utf-8"), render_rules()), encoding="utf-8")
