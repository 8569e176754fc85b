"""Statistics that add up: moments, class means, sensitivities, tallies, and the profile of a network."""
