"""The queries' gradients, preconditioned by the inverses of a chain of stages."""
