"""Tasks: questions about images with one right answer each, and how answers are scored."""
