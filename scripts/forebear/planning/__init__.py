"""How a job fits into memory: blocks at a time, tokens in a batch, passes."""
