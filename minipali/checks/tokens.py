"""Lesson 06."""

EXERCISES = ()
