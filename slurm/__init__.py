"""Run a function in a process of its own. Knows nothing of what the function does."""
