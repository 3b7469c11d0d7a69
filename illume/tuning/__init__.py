"""A tuning job: its folder, its trainer, its launcher."""
