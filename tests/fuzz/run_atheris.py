"""The coverage-guided fuzz run of everything that reads a folder somebody else made.

    PYTHONPATH=tests python -m fuzz.run_atheris WORK -max_total_time=900 -rss_limit_mb=3000 -timeout=20

Needs ``atheris`` beside the core package; it is in no environment of the workspace. WORK gets the subject (put it on a
memory file system), further arguments are libFuzzer's. The first byte of an input chooses the file, the second the
command that reads it; the rest is the file's content. A finding is anything but a report or an error of ours: its
input is kept in WORK/findings, one for each place it came from.
"""

from __future__ import annotations

import random
import sys
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fourfold", "fuzz"]):
    from fuzz.mutate import mutate_bytes, mutate_json
    from fuzz.subject import TARGETS, Subject


def main() -> None:
    """Build the subject, write its files as seeds, run."""
    work = Path(sys.argv.pop(1))
    subject, corpus, findings = Subject(work), work / "corpus", work / "findings"
    for folder in (corpus, findings):
        folder.mkdir()
    good = [subject.seed(target) for target in TARGETS]
    for number, content in enumerate(good):
        (corpus / f"seed-{number}").write_bytes(bytes([number, 0]) + content)

    found: set[str] = set()

    def one_input(data: bytes) -> None:
        if len(data) <= 2:
            return
        target = TARGETS[data[0] % len(TARGETS)]
        names = subject.command_names(target)
        # Half of the inputs go through the parsers alone, the others through a command.
        chosen = names[data[1] // 2 % len(names)] if data[1] % 2 else names[0]
        try:
            subject.run(target, data[2:], (chosen,))
        except Exception as error:  # noqa: BLE001 - a finding: kept, and the run goes on
            place = traceback.extract_tb(error.__traceback__)[-1]
            cause = f"{type(error).__name__} {Path(place.filename).name}:{place.lineno}"
            if cause not in found:
                found.add(cause)
                (findings / f"finding-{len(found)}").write_bytes(data)
                print(f"FINDING {len(found)}: {cause} by {chosen} of {target.file}: {str(error)[:300]!r}", flush=True)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        head = bytes([(data or b"\0")[0], rng.randrange(256)])
        if rng.random() < 0.4:  # afresh from a good file: what is kept for coverage alone grows small and strange
            data = head + good[head[0] % len(good)]
        if rng.random() < 0.2:
            changed = atheris.Mutate(data[2:], max(1, max_size - 2))
        else:
            changed = (mutate_json if rng.random() < 0.85 else mutate_bytes)(data[2:], rng)
        return bytes((head + changed)[:max_size])

    arguments = [sys.argv[0], "-max_len=200000", "-reduce_inputs=0", *sys.argv[1:], str(corpus)]
    atheris.Setup(arguments, one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
