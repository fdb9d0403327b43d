"""The key of a step: the digest of its inputs, code and libraries."""
