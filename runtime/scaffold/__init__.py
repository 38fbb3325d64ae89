"""Makes the files of a new function or project."""
