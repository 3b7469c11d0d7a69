"""Machine critics on a worker: fitting them in a child process, and rating candidates."""
