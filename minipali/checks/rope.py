"""Lesson 07."""

EXERCISES = ()
