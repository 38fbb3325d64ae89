"""The processes of a host: start, stop, signals, and a supervisor with its workers."""
