"""Lesson 05."""

EXERCISES = ()
