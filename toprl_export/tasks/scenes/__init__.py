"""Synthetic scenes of handwritten digits and shapes on a busy background: the embedded tasks' images."""
