"""Ordered functions: leader election, and the calls that standbys make for the leader."""
