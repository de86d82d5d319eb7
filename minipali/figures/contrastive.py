"""Figures of lesson 05: similarities, the two losses, and training with them."""
