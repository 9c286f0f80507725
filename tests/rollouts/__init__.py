"""Tests of how trajectories come about."""
