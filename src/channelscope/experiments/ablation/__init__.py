"""Channels ablated one by one, with and without replacement by their peers (H4)."""
