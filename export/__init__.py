"""From a trained method to a bundle: exact rewrites, ONNX, parity. `export.fuse` needs only torch; train uses it."""
