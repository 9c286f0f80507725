"""Learning from given examples: supervised fine-tuning and direct preference optimization."""
