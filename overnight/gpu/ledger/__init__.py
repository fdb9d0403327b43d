"""The queue for the card: files and kernel locks, weighted in MiB."""
