"""Looking inside: graphs as Python, ``explain``, ``dump`` and its page."""
