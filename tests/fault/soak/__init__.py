"""A fleet of devices on all doors, beside attackers, and what became of their messages."""
