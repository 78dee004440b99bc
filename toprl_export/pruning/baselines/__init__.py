"""Hand-written scorers that a learned one must beat, and their plans."""
