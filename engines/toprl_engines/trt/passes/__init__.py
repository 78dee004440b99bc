"""From a canonical graph to TensorRT's copy of it.

The copy differs from the canonical graph in nodes and functions alone: it names the same file of weights.
"""
