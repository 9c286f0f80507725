"""Tests of the learning algorithms."""
