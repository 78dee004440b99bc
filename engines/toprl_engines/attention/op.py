"""What the one attention op of every exported graph is called; nothing is imported to know it."""

from __future__ import annotations

DOMAIN, OPERATOR, VERSION = "toprl", "FlashAttention", 1
"""ONNX's domain, operator and version of it."""
CREATOR = (OPERATOR, str(VERSION), DOMAIN)
"""Name, version and namespace by which TensorRT knows the plugin that computes it."""
