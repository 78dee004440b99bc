"""The one place that seeds: independent random streams derived from a seed and names."""

from __future__ import annotations

import hashlib
import random
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and on every name, the same on every machine.

    >>> derive_seed(0, "train", 1)
    5110481859050231712
    >>> derive_seed(0, "train", 1) == derive_seed(0, "train", 2)
    False
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    # A hash, not seed + index: streams of neighbouring seeds must not be correlated or coincide.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the stream ``names``: drawing from one stream leaves every other as it is.

    >>> numpy_rng(0, "order").permutation(5).tolist()
    [0, 4, 3, 2, 1]
    """
    return np.random.default_rng(derive_seed(seed, *names))


def torch_generator(seed: int, *names: str | int, device: str = "cpu") -> torch.Generator:
    """A torch generator for the stream ``names`` on ``device``."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and (where it is imported) torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy's legacy generator takes 32 bits
    torch = sys.modules.get("torch")  # not imported for this: what has no torch has nothing of it to seed
    if torch is not None:
        torch.manual_seed(seed)
