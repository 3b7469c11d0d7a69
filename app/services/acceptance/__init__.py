"""Which rationales are accepted, and how many critics a set needs."""
