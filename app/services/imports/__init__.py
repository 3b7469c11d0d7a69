"""Imports of prompts and verdicts from files."""
