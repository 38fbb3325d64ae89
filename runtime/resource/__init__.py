"""What functions are given to work with: the PostgreSQL pool and the HTTP client."""
