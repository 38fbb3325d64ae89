"""Bindings: pull messages, call the function, settle. Nothing else settles a message."""
