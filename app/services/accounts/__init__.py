"""People: users, passwords, sessions, one-time links."""
