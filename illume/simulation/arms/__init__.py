"""Compares several ways of running the loop, its arms, in one simulation that shares what they have in common.

Reading order: `file` (which arms there are), `report` (what is told of them).
"""
