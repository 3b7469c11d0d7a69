"""What pages show, computed from several nouns at once."""
