"""The pytest layer: methods as fixtures, scheduling, recording, outcomes."""
