"""Edits as values, and the two ways of applying them."""
