"""Sampling from model servers: what a worker does that needs no device, and no torch."""
