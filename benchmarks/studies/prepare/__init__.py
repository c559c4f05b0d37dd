"""The study of image preparation: its time on one core, and its distance from PIL's result."""
