"""The recipe that makes the models shipped in ``kn_bench.model.embedded``; not part of the wheel.

``python -m training.train NAME`` trains one from nothing in about half an hour on one CPU thread;
``python -m training.evaluate`` measures them again. REPORT.md holds the results.
"""
