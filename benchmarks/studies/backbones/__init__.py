"""The study of a backbone's weights: what they are worth to a detector."""
