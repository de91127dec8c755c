"""Reads medical pictures, keeps their geometry, and prepares them the way an encoder wants to be fed."""
