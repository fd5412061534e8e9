"""A batch whose rows are of several runs: each at a step of its own, under a policy of its own."""
