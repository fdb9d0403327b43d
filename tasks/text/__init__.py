"""Texts: their classes, and other texts made of them."""
