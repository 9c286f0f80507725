"""The mathematics: arrays in, arrays out. Knows no model, no configuration and no record."""
