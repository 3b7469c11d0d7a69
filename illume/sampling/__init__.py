"""Rationales sampled from a model."""
