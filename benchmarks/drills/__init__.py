"""Drills: what goes wrong outside the benchmark must not make its results wrong.

    python -m benchmarks.drills [--share 1.0] [--seed 0] [--only kills ...]

Each module holds one drill, a function that returns a row of the table. The bar is nought in every
column: rows lost, doubled or different, torn lines, runs without their end, tracebacks, hangs.
"""
