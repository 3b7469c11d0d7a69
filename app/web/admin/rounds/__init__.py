"""Pages about rounds, versions and comparisons."""
