"""Between the broker and a function: pulls, calls, settles. Nothing else settles a message."""
