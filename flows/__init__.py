"""Experiments: one file per family, reading like a table of contents."""
