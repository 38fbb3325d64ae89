"""NATS with JetStream in memory: no port, no file, and a clock that the test moves."""
