"""Floor 7: the command line; every verb is imported on use."""
