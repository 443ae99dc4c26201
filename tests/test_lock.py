"""The lock is complete and exact, and its audit fails on known vulnerabilities only."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
EXTRAS = ("dev", "demo")
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")
"""Packages that a CUDA build of torch requires: torch itself names their exact versions."""


def pins(text: str) -> dict[str, str]:
    """Return name -> version of a lock; every line that is not a comment must be a pin."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = {}
    for line in lines:
        name, equal, version = line.partition("==")
        assert equal, f"not an exact pin: {line}"
        assert canonicalize_name(name) not in found, f"pinned twice: {line}"
        found[canonicalize_name(name)] = version
    return found


def needed(
    name: str, extras: frozenset[str], seen: dict[tuple[str, frozenset[str]], None]
) -> Iterator[str]:
    """Yield the names of all requirements of a distribution, here and with these extras, and their
    requirements."""
    if (name, extras) in seen:
        return
    seen[name, extras] = None
    for line in distribution(name).requires or []:
        wanted = Requirement(line)
        if wanted.marker is None or any(
            wanted.marker.evaluate({"extra": extra}) for extra in extras | {""}
        ):
            other = canonicalize_name(wanted.name)
            yield other
            yield from needed(other, frozenset(wanted.extras), seen)


@pytest.fixture(scope="module")
def closure() -> set[str]:
    try:
        found = set(needed("streamadapt", frozenset(EXTRAS), {}))
    except PackageNotFoundError as error:
        pytest.skip(f"installed without its development tools: {error}")
    return {name for name in found if name != "streamadapt" and not OF_TORCH.match(name)}


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    return pins((ROOT / "constraints.txt").read_text())


def test_every_distribution_is_pinned_at_the_installed_version(
    closure: set[str], lock: dict[str, str]
) -> None:
    """By its public version: the package index chooses the build."""
    assert len(closure) > 50
    installed = {name: Version(distribution(name).version).public for name in closure}
    assert {n: v for n, v in installed.items() if Version(lock.get(n, "0")) != Version(v)} == {}


def test_only_required_packages_are_pinned(closure: set[str], lock: dict[str, str]) -> None:
    assert set(lock) - closure == set()


def test_an_inexact_pin_would_be_detected() -> None:
    for wrong in ("numpy>=2", "numpy", "numpy==1\nNumPy==1"):
        with pytest.raises(AssertionError):
            pins(wrong)


def verdict(report: dict[str, object]) -> tuple[int, str]:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: tuple[int, str] = module.verdict(report)
    return found


def test_the_audit_fails_on_a_known_vulnerability_only() -> None:
    """Without data it does not fail, and it does not claim an audit."""
    fine = {"name": "a", "version": "1", "vulns": []}
    bad = {
        "name": "b",
        "version": "2",
        "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}],
    }
    unknown = {"name": "c", "skip_reason": "not found"}
    assert verdict({"dependencies": [fine, bad, unknown]}) == (
        1,
        "known vulnerabilities: b 2: PYSEC-1",
    )
    code, text = verdict({"dependencies": [fine, unknown]})
    assert code == 0
    assert text == "1 packages without a known vulnerability; nothing is known of 1: c"
    for nothing in ({"dependencies": [unknown]}, {"dependencies": []}, {}):
        assert verdict(nothing) == (0, "not done: the data cannot be reached from here")
