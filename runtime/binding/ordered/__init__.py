"""Who leads an ordered function, and what the other hosts do for it."""
