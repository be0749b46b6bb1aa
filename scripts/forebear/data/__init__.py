"""Documents and queries: from what people bring to token sequences in batches, and rankers of texts alone."""
