"""From a canonical graph to TensorRT's copy of it.

The copy differs from the canonical graph only in nodes and functions: it names the same file of weights.
"""
