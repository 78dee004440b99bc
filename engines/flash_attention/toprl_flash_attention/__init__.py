"""The FlashAttention kernel of toprl-export: Triton source, its use from torch, and compilation ahead of time."""
