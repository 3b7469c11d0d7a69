"""Candidate sets and the pool of sets that are ready."""
