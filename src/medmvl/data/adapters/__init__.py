"""One file per data set: its official layout in, samples out."""
