"""Rules that an ONNX graph must meet before TensorRT can build an engine from it; no TensorRT is needed."""
