"""Lesson 12."""

EXERCISES = ()
