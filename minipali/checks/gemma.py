"""Lesson 10."""

EXERCISES = ()
