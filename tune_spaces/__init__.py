"""Search spaces and presets in plain Python, one file per purpose. A job selects one with ``search.space``.

three_knobs        threshold, horizon, interval: the default
slow_momentum      learning rate and weight of the slow average, for the predictor of that name
phase_ratios       warmup, full, predict and correct steps
gain_memory_cycle  gain of a predicted step, memory of its average, length of a cycle
"""
