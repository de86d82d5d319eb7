"""Figures of lesson 12: distributions over the next token."""
