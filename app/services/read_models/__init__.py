"""Read models: what pages show, computed from several domain objects at once."""
