"""Seeded damage to everything that is read from disk, and kills of everything that writes there."""
