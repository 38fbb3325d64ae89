"""Log lines of all hosts over NATS."""
