"""What the report shows, made ready for its templates: scores, probes and groups, charts, curves, the gallery."""
