"""Figures of lesson 08: what a cache costs and saves."""
