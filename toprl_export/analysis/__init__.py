"""Why pruning works where it does: the information cliff, sensitivity by layer, transfer of agents, ablations."""
