"""The mathematics: pure functions on arrays, independent of models and configurations."""
