"""The nets of the classifier."""
