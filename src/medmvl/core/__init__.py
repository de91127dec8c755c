"""Floor 0: samples, layouts, recipes, lookup and log; imports no torch."""
