"""Schedules: which steps are computed in full."""
