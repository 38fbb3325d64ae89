"""Logs, metrics and the admin door."""
