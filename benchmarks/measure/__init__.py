"""Measuring tools of the benchmarks: timing, counting, plain sessions."""
