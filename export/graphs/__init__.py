"""ONNX graphs: written from a torch module, converted to FP16, quantized to INT8."""
