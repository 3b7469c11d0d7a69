"""Claims and verdicts on the event loop."""
