"""Reloads: watch files, load what has changed, and report what became of it."""
