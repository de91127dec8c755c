"""Floor 5: from a recipe to a bundle; imports nothing by itself."""
