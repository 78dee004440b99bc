"""The `trt` engine: plans built and run by TensorRT, or by TensorRT for RTX."""
