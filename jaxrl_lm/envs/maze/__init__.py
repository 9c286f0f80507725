"""Mazes: generated or drawn by hand, a bank of levels, the environment, and the oracle that knows the best path."""
