"""Text worlds: environments whose observations and actions are token ids, stepped on the device."""
