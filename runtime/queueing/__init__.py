"""Which message is next: pure data structures, without I/O and without a clock of their own."""
