"""The `illume` command."""
