"""Lesson 08."""

EXERCISES = ()
