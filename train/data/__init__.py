"""Data sets: folder layouts, hold-out, prepared images, the built-in demo data."""
