"""Speed of environments, learners and language models on this machine's devices, against what the devices can do."""
