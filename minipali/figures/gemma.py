"""Figures of lesson 10: the decoder's parts."""
