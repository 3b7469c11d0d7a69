"""Pages about erasing."""
