"""Judging a bundle: tasks, answer parsing, metrics with intervals, controls, and the report."""
