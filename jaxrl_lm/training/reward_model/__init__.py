"""Reward models trained on human preferences, and how well they agree with held-out ones."""
