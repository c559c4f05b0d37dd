"""The study of resizing: its time on one core, and its distance from PIL's result."""
