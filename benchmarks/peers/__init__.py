"""Models and inferencers of other libraries, side by side with a detector on the same machine."""
