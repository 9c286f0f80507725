"""PPO and Q-learning in pure JAX, for vmapped environments and for language models."""

__version__ = "0.1.0"
