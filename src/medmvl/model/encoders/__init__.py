"""Image and volume encoders: pixels in, a grid of tokens out."""
