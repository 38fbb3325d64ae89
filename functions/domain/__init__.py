"""Code that several functions share: topics, envelopes, the registry, the schema."""
