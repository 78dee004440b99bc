"""Engines of toprl-export: tracing to ONNX and running the result."""
