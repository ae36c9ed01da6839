"""What every suite asks for: the verdict of its criterion on a case."""

from kn_bench.testing.fixtures import (
    language_model,
    pytest_generate_tests,
    pytest_pycollect_makeitem,
    verdict,
)

__all__ = ["language_model", "pytest_generate_tests", "pytest_pycollect_makeitem", "verdict"]
