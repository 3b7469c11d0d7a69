"""Processes on this machine: embedded PostgreSQL and Redis, supervision, serving, health checks."""
