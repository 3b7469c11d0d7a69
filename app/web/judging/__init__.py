"""The critic's pages."""
