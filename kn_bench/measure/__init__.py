"""From cases and edits to measurements, and from measurements to verdicts."""
