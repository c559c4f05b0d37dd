"""The parts of `flawline choose`: candidates, their cost, training, scores and ranks."""
