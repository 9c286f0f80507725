"""Plans of training on TPU slices: memory, FLOPs and traffic of the real programs, compiled without a TPU."""
