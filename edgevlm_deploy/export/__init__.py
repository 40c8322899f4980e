"""From a torch module and the quantised truth to ONNX graphs that carry the same integers."""
