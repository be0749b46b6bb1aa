"""Which parameters are tracked, and the gradients of sequences with respect to them."""
