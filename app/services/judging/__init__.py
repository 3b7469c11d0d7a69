"""Claims, verdicts and their changes."""
