"""What one would deploy for a million messages a second, and for 100 000 topics: a model from measured figures."""
