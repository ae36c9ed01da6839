"""What a run was made of: enough to repeat it, and to refuse to continue it with anything else."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from kn_bench.measure.ranges import COUNT, POSITIVE_COUNT, SECONDS
from kn_bench.results.codec import FormatError, decode, encode
from kn_bench.results.files import StoreError, write_text

PRESET = "preset "
"""The beginning of the options that hold the values of a preset: ``preset rome gpt2``."""

TEMPLATE = "chat template of "
"""The beginning of the options that hold a digest of a model's chat template as it is rendered."""

FILE = "manifest.json"
FORMAT = 1
"""Of a run's files: the newest that can be read."""
PACKAGES = ("kn_bench", "torch", "transformers", "tokenizers", "numpy", "pytest", "pytest-xdist")
"""Packages whose versions are recorded."""


@dataclass(frozen=True, slots=True)
class Host:
    """The kind of machine, without its name."""

    system: str
    machine: str
    python: str
    cpus: int = field(metadata=POSITIVE_COUNT)
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """One run.

    Attributes:
        run: the run's name, that of its folder.
        created: when it began, UTC, ISO 8601.
        code: SHA-256 of the benchmark's own source and of the methods' files.
        versions: package -> version.
        models: model -> SHA-256 of its weights and tokenizer.
        data: source of cases -> SHA-256 of what it offered.
        options: option -> value as text, those that bear on results only (not the number of
            workers, not verbosity).
        seed: of all that is random.
        host: kind of machine.
        resumed: when it was continued, UTC.
        finished: when it ended, UTC; "" while it runs or when it was killed.
        timings: phase -> wall seconds.
        format: of the folder's files.
        tests: how many the log had when the run ended; None while it runs, and for a run from
            before this was written down.
        selection: of a shard, a digest of the tests that all its shards were cut from; "" for a
            whole run, and for a shard from before this was written down.
    """

    run: str
    created: str
    code: str
    versions: Mapping[str, str]
    models: Mapping[str, str]
    data: Mapping[str, str]
    options: Mapping[str, str]
    seed: int
    host: Host
    resumed: tuple[str, ...] = ()
    finished: str = ""
    timings: Mapping[str, float] = field(default_factory=dict, metadata=SECONDS)
    format: int = field(default=FORMAT, metadata=POSITIVE_COUNT)
    tests: int | None = field(default=None, metadata=COUNT)
    selection: str = ""

    def __post_init__(self) -> None:
        times = {"created": self.created, "finished": self.finished or self.created}
        for name, time in (*times.items(), *(("resumed", each) for each in self.resumed)):
            try:
                datetime.fromisoformat(time)
            except ValueError:
                raise FormatError(
                    f"field {name!r} holds {time!r}: expected a time such as "
                    "2026-01-31T12:00:00+00:00"
                ) from None

    def ended(self, timings: Mapping[str, float], tests: int) -> Manifest:
        """Return the manifest of the finished run; times of several sessions add up.

        Args:
            timings: phase -> wall seconds of this session.
            tests: how many the log has.
        """
        total = {
            phase: self.timings.get(phase, 0.0) + timings.get(phase, 0.0)
            for phase in (*self.timings, *(p for p in timings if p not in self.timings))
        }
        return replace(self, finished=now(), timings=total, tests=tests)

    def going_on(self) -> Manifest:
        """Return the manifest of the run while it is continued."""
        return replace(self, resumed=(*self.resumed, now()), finished="", tests=None)


def new_manifest(
    run: str,
    *,
    models: Mapping[str, str],
    data: Mapping[str, str],
    options: Mapping[str, str],
    seed: int,
    code: str = "",
    devices: Iterable[str] = (),
    selection: str = "",
) -> Manifest:
    """Return the manifest of a run that begins now, with this machine and its packages."""
    return Manifest(
        run=run,
        created=now(),
        code=code,
        versions=versions(),
        models=dict(models),
        data=dict(data),
        options=dict(options),
        seed=seed,
        host=Host(
            system=platform.system(),
            machine=platform.machine(),
            python=platform.python_version(),
            cpus=os.cpu_count() or 1,
            devices=tuple(devices),
        ),
        selection=selection,
    )


def now() -> str:
    """Return the time, UTC, to the microsecond, so that runs begun in one second are in order."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return package -> version, of those installed; imports none of them."""
    installed = {}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def hash_files(files: Iterable[Path], root: Path | None = None) -> str:
    """Return SHA-256 over names (relative to ``root``) and contents, whatever the order given."""
    total = hashlib.sha256()
    for name, path in sorted((_name_in(root, path), path) for path in files):
        with path.open("rb") as file:  # weights may be larger than memory
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def _name_in(root: Path | None, path: Path) -> str:
    inside = root is not None and path.is_relative_to(root)
    return path.relative_to(root).as_posix() if root and inside else path.name


def differences(then: Manifest, now: Manifest) -> tuple[str, ...]:
    """Return what keeps ``now`` from continuing ``then``, a clause each; () when nothing does.

    The machine may be another one; code, packages, models, data, options and seed may not.
    """
    clauses = [] if then.code == now.code else ["code: the source of the benchmark or a method"]
    clauses += [] if then.seed == now.seed else [f"seed: {then.seed} then, {now.seed} now"]
    clauses += (
        [] if then.format == now.format else [f"format: {then.format} then, {now.format} now"]
    )
    for name in ("models", "data", "options", "versions"):
        old, new = getattr(then, name), getattr(now, name)
        for key in sorted(old.keys() | new.keys()):
            was, new_one = old.get(key), new.get(key)
            if was != new_one:
                clauses.append(f"{name}: {key} {_short(was)} then, {_short(new_one)} now")
    return tuple(clauses)


def _short(value: str | None) -> str:
    """Return a value in a sentence: hashes by their beginning."""
    if value is None:
        return "absent"
    is_hash = len(value) == 64 and set(value) <= set("0123456789abcdef")
    return value[:12] if is_hash else value or "empty"


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the run in ``folder``.

    Raises:
        StoreError: when there is none, it is not one, or a newer kn_bench wrote it.
    """
    path = folder / FILE
    try:
        return decode(Manifest, path.read_bytes(), source=str(path), newest=FORMAT)
    except FileNotFoundError:
        raise StoreError(
            f"{folder}: expected a run, and it has no {FILE}; name another folder"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except FormatError as error:
        raise StoreError(f"{error}; was it edited by hand?") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest`` as the run's ``manifest.json``, atomically."""
    write_text(folder / FILE, encode(manifest, indent=2) + "\n")
