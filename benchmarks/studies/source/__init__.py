"""The study of graphs that take the camera's own frame: their scores, and what they cost."""
