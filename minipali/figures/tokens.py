"""Figures of lesson 06: pieces of text, rows of tokens, and pictures made small."""
