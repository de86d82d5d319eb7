"""Figures of lesson 15: boxes and masks."""
