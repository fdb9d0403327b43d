"""The card: what it is, who holds how much of it, and the lease a step takes."""
