"""Mazes, generated or drawn by hand: level banks, the environment, and the shortest-path oracle."""
