"""Flows: one @pipeline in each file, called as the file."""
