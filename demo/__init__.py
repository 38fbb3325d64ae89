"""A demonstration against a running host: `python -m demo`."""
