"""Data sets that are built, not downloaded."""
