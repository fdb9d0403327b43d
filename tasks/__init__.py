"""Methods: one file (or folder) each, with its values, its recipe and its step."""
