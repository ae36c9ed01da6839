"""Seed random numbers so that they are the same in every process and in any order of cases."""

from __future__ import annotations

import hashlib

import torch


def seeded(*parts: object) -> torch.Generator:
    """Return a generator on the CPU, seeded by ``parts``.

    Args:
        parts: a single integer is torch's own seed, as in published code; otherwise the content of
            all parts is hashed, so that each case has its own stream.
    """
    generator = torch.Generator()
    if len(parts) == 1 and isinstance(parts[0], int):
        return generator.manual_seed(parts[0] % 2**63)
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
