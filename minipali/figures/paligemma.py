"""Figures of lesson 11: masks, and both kinds of tokens in one row."""
