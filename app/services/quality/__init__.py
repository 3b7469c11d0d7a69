"""How well critics judge: gold prompts, repeats, agreement, reviews."""
