"""Pages about a project and its settings."""
