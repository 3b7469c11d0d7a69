"""What the other services stand on."""
