"""Everything that speaks NATS. No other package imports `nats`."""
