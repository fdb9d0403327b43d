"""Agents that learn in environments."""
