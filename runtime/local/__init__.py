"""Calls of a function without a host: one event, or messages of the past."""
