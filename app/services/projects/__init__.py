"""Projects, their settings, instructions and key bindings."""
