"""``hybrid-ray compare``: the job's hybrid against controls, peers and whole configurations, over several seeds."""
