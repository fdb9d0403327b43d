"""Formulas of memory for language models and diffusion, from sizes alone."""
