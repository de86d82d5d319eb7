"""Lesson 11."""

EXERCISES = ()
