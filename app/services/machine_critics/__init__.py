"""Machine critics: fitting them after rounds, their scores of candidates, and what they accept."""
