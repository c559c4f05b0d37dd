"""Drift: whether the frames of a stream are still like the good images of the training."""
