"""The CUDA driver calls that TensorRT needs, through whichever Python package provides them."""
