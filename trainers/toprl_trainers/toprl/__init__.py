"""TOP-RL: progressive pruning inside the decoder, learned by PPO."""
