"""Datasets as records, training rows and Parquet."""
