"""From a ranking to a smaller network: cut, shrink, repair, and the folder of the result."""
