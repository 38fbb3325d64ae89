"""What a function holds: what it pulls, in which line it waits, whose turn it is, who calls."""
