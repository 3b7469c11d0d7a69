"""What every request passes: the admission gate, headers, limits, errors, ETags."""
