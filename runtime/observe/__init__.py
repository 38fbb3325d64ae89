"""Logs, metrics and the admin server."""
