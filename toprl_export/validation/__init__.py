"""Measures a bundle against the reference model and says whether it may ship."""
