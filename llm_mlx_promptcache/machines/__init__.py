"""One model over several machines: who they are, how each is started, what rank 0 has of them."""
