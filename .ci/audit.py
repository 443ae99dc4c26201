"""Audit the pinned versions for known vulnerabilities: `python3 .ci/audit.py`, from the
repository's root.

Fails on a known vulnerability only. Where pip-audit or its data cannot be reached it says so in
one line and passes: what the network lets through is no property of this code. pip-audit lives in
a folder of its own, so it moves no pin.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

AUDITOR = "pip-audit==2.10.1"
INSTALL_S, AUDIT_S = 120, 120
LISTED = 5

ACCEPTED: dict[str, str] = {}
"""Known vulnerabilities that do not reach us: id -> why."""


def main() -> int:
    """Audit, say the verdict in one line, and return the exit code."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        report, problem = audited(root / "constraints.txt", Path(folder))
    code, line = (0, f"not done: {problem}") if report is None else verdict(report)
    sys.stdout.write(f"audit of the lock: {line}\n")
    return code


def audited(lock: Path, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Return pip-audit's report, or None and why there is none."""
    report = folder / "report.json"
    python = folder / "venv" / "bin" / "python"
    once = ["--retries", "0", "--timeout", "15"]  # a refusal is an answer
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *once,
        AUDITOR,
    ]
    # No resolver: the lock is complete, which tests/test_lock.py holds, and nothing is to be
    # downloaded.
    audit = [
        python,
        "-m",
        "pip_audit",
        "-r",
        lock,
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
    ]
    try:
        venv.create(folder / "venv", with_pip=True)
        subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_S)
    except (OSError, subprocess.SubprocessError):
        return None, f"{AUDITOR} cannot be installed here"
    try:
        subprocess.run(
            [*audit, "-f", "json", "-o", report], check=False, capture_output=True, timeout=AUDIT_S
        )
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, "its data cannot be reached from here"
    return found, ""


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """Return exit code and one line for a report of pip-audit."""
    packages = report.get("dependencies", [])
    vulnerable = {
        f"{package['name']} {package['version']}: {known['id']}"
        for package in packages
        for known in package.get("vulns", [])
        if not {known["id"], *known.get("aliases", [])} & ACCEPTED.keys()
    }
    if vulnerable:
        return 1, f"known vulnerabilities: {', '.join(sorted(vulnerable))}"
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        return 0, "not done: the data cannot be reached from here"
    said = f"{len(packages) - len(unknown)} packages without a known vulnerability"
    if unknown:
        said += f"; nothing is known of {len(unknown)}: {', '.join(unknown[:LISTED])}"
        said += ", ..." if len(unknown) > LISTED else ""
    return 0, said


if __name__ == "__main__":
    sys.exit(main())
