"""Pruning: selection, scorers, plans, masks and their cost."""
