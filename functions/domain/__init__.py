"""What several functions share: topics, envelopes, the registry, the schema. No function itself."""
