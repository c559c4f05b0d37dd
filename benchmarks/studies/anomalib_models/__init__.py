"""The study of another library: models of anomalib, trained and exported in its own environment."""
