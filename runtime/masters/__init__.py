"""Master parts: parts that are known to be good or bad, with which a detector is checked."""
