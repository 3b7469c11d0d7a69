"""Model servers: which there are, what they can do, and the adapters that they are given."""
