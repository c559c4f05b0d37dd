"""The study of a GPU: from the authors' eager code to an FP16 plan of TensorRT."""
