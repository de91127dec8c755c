"""Where samples come from: stores, mixtures, built-in benchmarks."""
