"""Lesson 15."""

EXERCISES = ()
