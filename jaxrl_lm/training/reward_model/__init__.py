"""A reward model learned from people's judgements, and how well it agrees with them."""
