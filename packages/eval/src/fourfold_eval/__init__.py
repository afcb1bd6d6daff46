"""Fourfold's benchmarks: lm-evaluation-harness tasks, the demo's, KL, size, speed."""
