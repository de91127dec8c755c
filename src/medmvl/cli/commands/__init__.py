"""One module per verb of the command line, each with a typer `app`."""
