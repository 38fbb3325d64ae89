"""Delivers what routes match: a module for each type of destination, one contract for all."""
