"""What all other services build on."""
