"""The parts of the training loop (overnight/training.py): batches, precision, memory, checkpoints, divergence."""
