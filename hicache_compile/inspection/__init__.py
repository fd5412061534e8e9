"""Inspection: graphs as Python, ``explain``, ``dump`` and its HTML page."""
