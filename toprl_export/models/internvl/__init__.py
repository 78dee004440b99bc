"""InternVL 2.5 and 3: tiles of one size, each as many visual tokens."""
