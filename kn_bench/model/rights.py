"""Give files the rights that other new files have, whoever wrote them; without torch."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4


def with_usual_rights(*files: Path) -> None:
    """Give files the rights of any new one beside them: safetensors and tempfile make private ones.

    A new file shows these rights. To ask for the umask would change it, for other threads too.

    Raises:
        OSError: where no file can be made there.
    """
    for file in files:
        other = file.with_name(f".{uuid4().hex}")
        try:
            other.touch(exist_ok=False)
            file.chmod(other.stat().st_mode)
        finally:
            other.unlink(missing_ok=True)
