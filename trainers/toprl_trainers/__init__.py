"""Learners: one package each, with their shared reinforcement-learning parts in ``rl``."""
