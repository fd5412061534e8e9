"""When to compute: schedules, one idea a file."""
