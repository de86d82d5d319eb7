"""Lesson 09."""

EXERCISES = ()
