"""What learners share: sampling of keep masks, rewards, advantages, PPO; checkpoints and several processes."""
