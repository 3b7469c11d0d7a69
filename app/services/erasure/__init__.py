"""Erasing a person, an image or a project."""
