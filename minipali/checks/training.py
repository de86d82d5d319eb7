"""Lesson 13."""

EXERCISES = ()
