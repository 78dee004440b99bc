"""toprl-export: learned visual-token pruning for vision-language models, exported into the engine."""
