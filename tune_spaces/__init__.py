"""Search spaces and presets: plain Python, one file a purpose. A job names one with ``search.space``."""
