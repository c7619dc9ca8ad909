"""Search spaces and presets: plain Python, one file a purpose. A job names one with ``search.space``.

three_knobs        threshold, horizon, interval: the default
phase_ratios       warmup, full, predict and correct steps
gain_memory_cycle  how far a predicted step goes, what it remembers, how long a cycle is
"""
