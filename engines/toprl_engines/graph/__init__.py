"""From the reference model and its agents to the ONNX files of a bundle."""
