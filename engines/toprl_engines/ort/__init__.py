"""The `onnx` engine: ONNX Runtime on CPU or CUDA."""
