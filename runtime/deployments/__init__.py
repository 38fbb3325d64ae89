"""What runs of each function in a process, and how another version takes its place."""
