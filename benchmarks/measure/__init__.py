"""What the benchmarks measure with: timing, counting, plain sessions."""
