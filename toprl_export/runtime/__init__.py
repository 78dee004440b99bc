"""Serving a bundle with NumPy alone: pictures and questions in, engine sessions, greedy answers out."""
