"""REST routes of what is outside: addresses that receive events, and model servers."""
