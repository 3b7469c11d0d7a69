"""Webhooks, and requests to URLs that users entered."""
