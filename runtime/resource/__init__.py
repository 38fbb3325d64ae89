"""The resources of functions: the PostgreSQL pool and the HTTP client."""
