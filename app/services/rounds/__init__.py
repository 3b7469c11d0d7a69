"""Tuning rounds, snapshots, versions and comparisons of versions."""
