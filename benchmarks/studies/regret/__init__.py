"""The study of `flawline choose`: how much accuracy its choice without test images costs."""
