"""Floor 2: towers, language model and tuning; imports nothing by itself."""
