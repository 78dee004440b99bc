"""LLaVA-NeXT: tiles of any resolution, packed with a newline token behind each row."""
