"""The whole loop with a simulated critic."""
