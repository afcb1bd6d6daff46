"""The documentation's page of planted faults, rendered from the catalogue.

``PYTHONPATH=tests python -m core.verify.catalogue_page docs/fault-catalogue.md`` writes it.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

from fourfold.verify import get_rule

from .catalogue import CATALOGUE
from .faults import BOTH, Fault

#: Kind of fault -> what a fault's rule and name look like; the first that fits counts.
KINDS = (
    (
        "modules of two schemes",
        r"quantized_layers|two schemes|weights alone|config groups?|other algorithms|another group|targets|FF119",
    ),
    ("reciprocal scales", r"reciprocal"),
    ("denormal scales", r"denormal|subnormal"),
    ("infinite or NaN scales", r"FF050|scale (infinite|NaN)|scale NaN|NaN block"),
    ("zero or negative scales", r"FF051|FF052|flushed to zero|scale (zero|negative)|scales zero"),
    ("missing scales and codes", r"FF024|FF025|input scales? missing|scale missing"),
    ("junk and constant scales", r"junk|FF054|FF060|FF061"),
    ("unequal scales in a fused group", r"FF062|FF063"),
    ("scales off by a factor", r"FF083|FF096"),
    ("scales beside the wrong codes", r"FF090|FF095"),
    ("swapped nibbles", r"FF084"),
    ("transposed or shifted weights, wrong row or column order", r"FF087|FF088|FF089|rows exchanged"),
    ("gate and up swapped", r"FF085"),
    ("experts or layers permuted or copied", r"FF086|FF073"),
    ("damaged codes and blocks", r"FF091|FF097"),
    ("codes constant, zero or low", r"FF07[012]"),
    ("weights falsely called transformed", r"transformed"),
    ("weights worse than NVFP4 allows", r"FF081|FF094"),
    ("experts missing or left in BF16, layers skipped", r"FF02[0123]|FF032|FF035"),
    ("lost or changed layer_scalar", r"layer_scalar (lost|changed|zero)"),
    ("router, vision, embeddings or head quantized", r"FF030"),
    ("kept tensors changed, missing or not finite", r"FF080|FF092|FF028"),
    ("tied weight lost or doubled", r"FF031"),
    ("wrong or extra names, two layouts", r"FF027|FF033|FF034"),
    ("wrong dtype or shape", r"FF04[012]"),
    ("KV scheme and scales", r"FF064|FF111|KV"),
    ("wrong algorithm, group size, scheme or version", r"FF10[0-4]|FF026|FF114|FF116"),
    ("ignore list or targets that do not match", r"FF10[6-9]|FF110"),
    ("contradicting or further quantization configs", r"FF105|FF117"),
    ("another model's config", r"FF112"),
    ("stale, partial or false index", r"FF00[567]"),
    ("duplicate tensors and keys", r"FF008|twice"),
    ("truncated, overlapping or lying shards", r"FF001|FF002|FF012"),
    ("paths, links and pipes out of the folder", r"FF003|FF004|pipe"),
    ("pickles, code and adapters", r"FF009|FF010|FF013"),
    ("JSON that is broken or a bomb", r"FF011"),
    ("patterns that never end", r"FF118"),
    ("missing tokenizer, template, processor, generation config", r"FF12[0123]"),
    ("another model's tokenizer or template", r"FF12[456]"),
    ("manifest that is not true", r"FF13\d"),
)
_HEAD = """# The fault catalogue

Every fault here is planted in a good checkpoint and must be found by the rule that names its cause, in each layout it
can occur in, with the source model and (where the last column says so) without it; rules that rightly find it too are
listed with it in the tests, and any other finding fails them. The good checkpoints themselves raise nothing.
`python benchmarks/verify_faults.py` plants all of them and prints the figures; what no rule can see is told in
[the verifier's page](verifier.md). This page is generated from the catalogue (`tests/core/verify`); a test checks it.

"""


def kind_of(fault: Fault) -> str:
    """The kind a fault is counted under; KeyError for one that no kind describes."""
    for kind, pattern in KINDS:
        if re.search(pattern, f"{fault.rule} {fault.name}"):
            return kind
    raise KeyError(fault.name)


def render_page() -> str:
    """The whole page."""
    kinds: dict[str, list[Fault]] = defaultdict(list)
    for fault in CATALOGUE:
        kinds[kind_of(fault)].append(fault)
    cases = sum(len(fault.layouts) for fault in CATALOGUE)
    blind = sum(len(fault.layouts) for fault in CATALOGUE if fault.blind)
    lines = [
        f"{len(CATALOGUE)} faults of {len(kinds)} kinds, {cases} cases in both layouts: {cases} found with the source,"
        f" {blind} of them without it.\n",
        "| kind | faults | cases | rules | found with the source | without it |",
        "|---|---|---|---|---|---|",
    ]
    for kind, _ in KINDS:
        faults = kinds.get(kind, [])
        number, alone = (sum(len(f.layouts) for f in some) for some in (faults, [f for f in faults if f.blind]))
        rules = ", ".join(sorted({fault.rule for fault in faults}))
        lines.append(f"| {kind} | {len(faults)} | {number} | {rules} | {number} | {alone} |")
    lines += ["", "## Fault by fault", "", "| fault | rule | layouts | without the source |", "|---|---|---|---|"]
    for kind, _ in KINDS:
        for fault in kinds.get(kind, []):
            layouts = "both" if fault.layouts == BOTH else ", ".join(fault.layouts)
            rule = f"{fault.rule} {get_rule(fault.rule).title}"
            name = fault.name.replace("|", "\\|")
            lines.append(f"| {name} | {rule} | {layouts} | {'found' if fault.blind else 'not visible'} |")
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render_page(), encoding="utf-8")
