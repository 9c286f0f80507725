"""Learning from answers that the policy draws: PPO, RLOO and GRPO on a language model."""
