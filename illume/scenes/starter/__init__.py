"""The starter model's architecture, lessons and training."""
