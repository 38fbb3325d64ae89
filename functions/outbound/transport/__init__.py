"""HTTP/1.1 POST to a URL that a tenant chose: guarded, bounded in time, bytes and answers."""
