"""TensorRT and TensorRT-RTX: building plans, keeping them on disk, running them."""
