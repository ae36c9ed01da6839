"""What is asked: edit requests and their probes, as text alone; no model is needed to read them."""
