"""From facts and minimal pairs to cases: one module a way to make probes."""
