"""Compare two runs of one suite: what passed plainly must pass wrapped."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def passed(report: str) -> dict[str, bool]:
    """Return for each test of a JUnit report whether it passed; skipped ones are left out."""
    results = {}
    for case in ET.parse(report).iter("testcase"):
        outcomes = {child.tag for child in case}
        if "skipped" not in outcomes:
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            results[name] = not outcomes & {"failure", "error"}
    return results


def main(plain_report: str, wrapped_report: str, expected_file: str) -> int:
    """Print the verdict; return the exit code."""
    plain, wrapped = passed(plain_report), passed(wrapped_report)
    lines = Path(expected_file).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    # `sometimes NAME` is one that depends on which of two threads is faster.
    sometimes = {line.split()[1] for line in lines if line.startswith("sometimes ")}
    expected = {line.split()[0] for line in lines if not line.startswith("sometimes ")}
    worse = sorted(name for name, ok in plain.items() if ok and not wrapped.get(name, False))
    unexpected = [name for name in worse if name.split("[")[0] not in expected | sometimes]
    needless = sorted(expected - {name.split("[")[0] for name in worse})
    for name in unexpected:
        print(f"passes plainly, not wrapped: {name}")
    for name in needless:
        print(f"expected to differ, but does not: {name}")
    good = sum(plain.values())
    print(
        f"{good} pass plainly, {good - len(worse)} of them wrapped, "
        f"{len(worse) - len(unexpected)} differ as expected"
    )
    ran_little = good < 1000
    if ran_little:
        print("that is too few: the suite did not run as a whole")
    return 1 if unexpected or needless or ran_little else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
