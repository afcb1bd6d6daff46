"""Fourfold's benchmarks, statistics, report and model card."""
