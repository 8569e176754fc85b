"""Which channels of a network can be removed together, and the smaller network without them."""
