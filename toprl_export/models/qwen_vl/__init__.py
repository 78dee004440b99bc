"""Qwen2-VL and Qwen2.5-VL: pictures of any size, and rotary positions of three axes (M-RoPE)."""
