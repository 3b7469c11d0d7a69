"""Commands that keep running: the demo, the web server, workers, and beat."""
