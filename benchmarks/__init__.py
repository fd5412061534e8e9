"""Declared scenarios, ours and the peers in turns, one JSON line for each contender. Read ``lockstep.race``."""
