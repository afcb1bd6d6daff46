"""What the verifier finds: every planted fault, every good checkpoint. Prints JSON; exits 1 on a miss or a false alarm.

    python benchmarks/verify_faults.py [--good CHECKPOINT ...] [--source demo] [--only TEXT]

Plants each fault of ``tests/core/verify`` in a good checkpoint of each layout it can occur in, and verifies it with and
without the source. ``--good`` are further checkpoints that must raise nothing, made of ``--source`` by real toolchains.
Seconds are of one verification (median, worst), the wall clock's; peak memory is this process's, torch included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from core.verify.catalogue import CATALOGUE
from core.verify.catalogue_page import kind_of
from core.verify.faults import Fault
from core.verify.good_checkpoints import Editable, Variant, build
from core.verify.source_model import make_source
from core.verify.test_good import GOOD
from fourfold.checkpoint.index import TensorFolder
from fourfold.models.resolve import resolve_model
from fourfold.verify import VerifyReport, verify_checkpoint


class Bench:
    """Good checkpoints, built once each, and what verifying came to."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._built = folder, dict[Variant, Path]()
        (folder / "source").mkdir()
        self.source = make_source(folder / "source")
        self.seconds: list[float] = []

    def good(self, variant: Variant) -> Path:
        """A good checkpoint of a variant."""
        if variant not in self._built:
            place = self._folder / variant.name
            place.mkdir()
            self._built[variant] = build(TensorFolder(self.source), variant, place)
        return self._built[variant]

    def verify(self, checkpoint: Path, source: Path | None) -> VerifyReport:
        """Verify, and note the time."""
        start = time.perf_counter()
        report = verify_checkpoint(checkpoint, source=source)
        self.seconds.append(time.perf_counter() - start)
        return report

    def case(self, fault: Fault, layout: str) -> dict[str, Any]:
        """Plant one fault; what was found with and without the source."""
        folder = self._folder / "case" / "checkpoint"
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(self.good(Variant(layout, **fault.variant)), folder)
        if not fault.manifest:
            (folder / "manifest.json").unlink()
        checkpoint = Editable(folder, Variant(layout, **fault.variant))
        if fault.plant is not None:
            fault.plant(checkpoint, self.source)
            checkpoint.save()
        if fault.after is not None:
            fault.after(folder)
        found = set(self.verify(folder, self.source).num_findings)
        blind = set(self.verify(folder, None).num_findings)
        outcome = "right rule" if fault.rule in found else "another rule" if found else "missed"
        return {
            "fault": fault.name, "layout": layout, "kind": kind_of(fault), "rule": fault.rule, "outcome": outcome,
            "unexpected": sorted(found - {fault.rule, *fault.also}), "without_source": fault.rule in blind,
            "as_catalogued": outcome == "right rule" and (fault.rule in blind) is fault.blind,
        }  # fmt: skip


def main() -> int:
    """Run all cases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--good", nargs="*", type=Path, default=[])
    parser.add_argument("--source", default="demo")
    parser.add_argument("--only", default="", help="only faults whose name contains this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        cases = [bench.case(f, layout) for f in CATALOGUE if options.only in f.name for layout in f.layouts]
        alarms = [
            {"checkpoint": variant.name, "rules": sorted(report.num_findings)}
            for variant in (GOOD if not options.only else ())
            for source in (bench.source, None)
            if not (report := bench.verify(bench.good(variant), source)).ok
        ]
        model = resolve_model(options.source)
        for folder in options.good:
            report = bench.verify(folder, model)
            alarms += [] if report.ok else [{"checkpoint": folder.name, "rules": sorted(report.num_findings)}]
    outcomes = [case["outcome"] for case in cases]
    print(json.dumps(
        {
            "faults": len({case["fault"] for case in cases}), "kinds": len({case["kind"] for case in cases}),
            "cases": len(cases), "found_by_the_right_rule": outcomes.count("right rule"),
            "found_by_another_rule": outcomes.count("another rule"), "missed": outcomes.count("missed"),
            "found_without_source": sum(case["without_source"] for case in cases),
            "good_checkpoints": len(GOOD) + len(options.good), "false_alarms": alarms,
            "seconds_median": round(statistics.median(bench.seconds), 3), "seconds_worst": round(max(bench.seconds), 3),
            "peak_rss_mb": _peak_rss_mb(),
            "not_as_catalogued": [c for c in cases if not c["as_catalogued"] or c["unexpected"]],
        }, indent=1,
    ))  # fmt: skip
    return int(bool(alarms) or outcomes.count("right rule") < len(cases))


def _peak_rss_mb() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return round(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024)


if __name__ == "__main__":
    sys.exit(main())
