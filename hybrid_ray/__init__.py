"""hybrid_ray: how much training can be skipped, measured against controls that cost the same."""
