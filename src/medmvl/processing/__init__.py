"""From samples to tokens: chat templates, placeholders, boxes as text, shared-image packing, batches."""
