"""How many times one cell's KL is another's, paired by prompt, with a 95 % interval. One JSON.

    python benchmarks/paired_kl.py STUDY [--against CELL]

STUDY is the output of `fourfold study run` with the benchmark `kl`, whose distributions it keeps. ``--against`` is a
cell; the first one by default. Resampled are prompts, the same draw for both cells: positions of one answer are not
independent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from fourfold.evaluate.statistics import Sample, retained_interval
from fourfold.study.evaluation import EVALUATIONS_FOLDER
from fourfold.study.results import read_results
from fourfold.study.spec import BASELINE
from fourfold_eval.divergence.kernel import divergence
from fourfold_eval.divergence.logprobs import load
from fourfold_eval.divergence.sequences import SequenceSet

_KEPT = Path("measurements", "kl")


def sample_of(cell: Path, baseline: Path, sequences: SequenceSet) -> Sample:
    """KL summed over the positions of each prompt, and their number."""
    totals, counts = [], []
    for index in range(len(sequences.sequences)):
        theirs, own = (load(sequences, index, folder / _KEPT) for folder in (baseline, cell))
        if theirs is None or own is None:
            raise SystemExit(f"{cell.name}: no distributions of prompt {index} are kept")
        found = divergence(theirs, own)
        totals.append(float(found.kl.sum()))
        counts.append(len(found.kl))
    return Sample(np.array(totals), np.array(counts, dtype=np.float64))


def main() -> None:
    """Pair, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--against")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = given.study / EVALUATIONS_FOLDER
    baseline = folder / BASELINE
    sequences = SequenceSet.load(baseline / _KEPT)
    if sequences is None:
        raise SystemExit(f"{baseline / _KEPT}: holds no answers; run a study with the benchmark kl")
    results = read_results(given.study)
    names = [cell.name for cell in results.evaluations if cell.name != BASELINE] if results else []
    samples = {name: sample_of(folder / name, baseline, sequences) for name in names}
    against = given.against or names[0]
    ratios = {}
    for name in [name for name in names if name != against]:
        interval = retained_interval(samples[against], samples[name], given.seed)
        ratio = samples[name].score / samples[against].score
        ratios[name] = {"ratio": round(ratio, 4)}
        ratios[name] |= {"low": round(interval.low, 4), "high": round(interval.high, 4)} if interval else {}
    print(json.dumps({"against": against, "prompts": samples[against].n, "cells": ratios}, indent=1))


if __name__ == "__main__":
    main()
