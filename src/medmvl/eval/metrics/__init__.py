"""Pure metric functions; the name of a metric says its variant."""
