"""Pages about prompts."""
