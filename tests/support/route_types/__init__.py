"""A counterpart of each route type, for the suite that all types must pass."""
