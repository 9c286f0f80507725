"""Learning from completions that the policy draws: PPO, RLOO and GRPO on a language model."""
