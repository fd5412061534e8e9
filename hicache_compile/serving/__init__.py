"""Many requests, one compiled model."""
