"""Webhooks, and requests to addresses that people typed."""
