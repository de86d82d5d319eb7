"""Figures of lesson 07: rotations and wavelengths."""
