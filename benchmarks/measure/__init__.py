"""Timing and counting, shared by the benchmarks."""
