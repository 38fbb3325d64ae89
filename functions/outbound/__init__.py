"""Requests to endpoints that tenants choose: guarded, signed, and bounded in what they may use."""
