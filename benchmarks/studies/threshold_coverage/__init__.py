"""The study of the threshold: the false-alarm rate that it states, against the one it delivers."""
