"""The audit log: who changed a threshold, a recipe or a bundle, when, and from what to what."""
