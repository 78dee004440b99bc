"""From a canonical graph to TensorRT's copy of it. Each pass is one file and says what it needs and what it leaves.

The copy differs from the canonical graph in nodes and functions alone: it names the same file of weights.
"""
