"""The loop with a simulated critic: its stages, and the rounds of one seed."""
