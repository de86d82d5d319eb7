"""Lesson 14."""

EXERCISES = ()
