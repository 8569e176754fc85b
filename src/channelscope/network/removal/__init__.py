"""Which channel every element of a network belongs to, which channels can be removed together, and the smaller network without them."""
