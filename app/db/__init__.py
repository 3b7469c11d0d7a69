"""The database: its engine, its sessions, its migrations."""
