"""Figures of lesson 14: bytes of a file, and what is in the model."""
