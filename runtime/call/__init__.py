"""One call of a function: its task, threads, time limit, effects and outcome."""
