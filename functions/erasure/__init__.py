"""Erases a tenant: everything in PostgreSQL and in streams, in small steps, over crashes."""
