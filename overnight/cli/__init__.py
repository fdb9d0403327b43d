"""The command `overnight`; one file for each command that prints."""
