"""Evaluates expressions of tenants in a process that can be stopped, within a budget per tenant."""
