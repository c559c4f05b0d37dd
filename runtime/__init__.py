"""The edge half: reads a bundle, runs its engine, judges frames. Standard library, numpy, OpenCV; never torch."""
