"""Prompts and verdicts from files."""
