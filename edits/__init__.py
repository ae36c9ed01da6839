"""The editing methods, one file each; imported as ``kn_bench.edits``."""

if __name__ != "kn_bench.edits":
    raise ImportError(
        f"{__name__}: import the methods as kn_bench.edits; under two names every method would "
        "exist twice"
    )
