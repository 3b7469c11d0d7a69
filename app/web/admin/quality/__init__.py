"""Pages about critics, gold prompts and review."""
