"""Pre-training of a backbone on procedural textures."""
