"""Tests of the language models and their checkpoints."""
