"""The training loop (loop.py) and its parts; recipe.py is what a method gives it."""
