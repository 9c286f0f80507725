"""The chain of RLHF: fine-tune, then rounds of labels, reward model and PPO."""
