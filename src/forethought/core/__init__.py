"""Run directory, checkpoints, config, errors, randomness and files; imports no torch."""
