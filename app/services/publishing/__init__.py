"""Repositories for the Hugging Face Hub: a snapshot as a dataset, an adapter as a model."""
