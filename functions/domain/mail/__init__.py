"""Email: the bytes of a message, and the connections to an SMTP server."""
