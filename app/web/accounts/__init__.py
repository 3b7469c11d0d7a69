"""Signing in, and one-time links."""
