"""Metrics, critics and the activation rule."""
