"""``hybrid-ray compare``: the job's own settings against controls, peers and whole configurations, over seeds."""
