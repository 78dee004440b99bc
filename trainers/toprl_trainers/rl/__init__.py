"""Reinforcement learning that learners share: sampling of keep masks, rewards, advantages, PPO."""
