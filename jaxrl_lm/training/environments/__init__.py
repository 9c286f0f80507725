"""Training in environments: settings, the chunk of updates, evaluation, and agents of finished runs."""
