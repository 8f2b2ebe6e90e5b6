"""Summaries and figures of a comparison for people to read."""
