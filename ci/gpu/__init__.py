"""Checks for a machine with a CUDA GPU; `ci/gpu.sh` starts them."""
