"""Loading a vision-language model, and turning prompts into its inputs."""
