"""The parts of the training loop (overnight/training/recipe.py): batches, precision, memory, checkpoints, divergence."""
