"""The `onnx` engine: ONNX Runtime, on the CPU or by one of its providers for GPUs."""
