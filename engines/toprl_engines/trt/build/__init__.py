"""From exported graphs to TensorRT plans."""
