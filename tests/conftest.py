"""Makes the modules beside it (tiny tokenizers and the like) importable from every test."""
