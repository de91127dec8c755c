"""What answers the questions of an evaluation: a bundle, another framework's checkpoint, an endpoint, or a file."""
