"""Figures of lesson 09: heads that share keys and values."""
