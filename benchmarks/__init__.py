"""Speed beside peers, measured in one run on one machine, printed as ratios."""
