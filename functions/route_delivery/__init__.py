"""Delivers route jobs: a module for each type of destination, one contract for all."""
