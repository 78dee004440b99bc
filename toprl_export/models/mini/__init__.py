"""`mini`: the embedded LLaVA model (576 visual tokens, 8 decoder layers) that makes every command work offline."""
