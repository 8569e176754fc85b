"""A traced network: its sites, channels, groups, costs and reversible edits; no statistics."""
