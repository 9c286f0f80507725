"""Host loops: a jitted update, then log, sample and checkpoint."""
