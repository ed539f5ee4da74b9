"""The baseline: findings that are known, so that only new ones are reported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import attrs

from sandboxpool._exceptions import OptionError

from ._finding import Finding

_VERSION = 1


@attrs.frozen(order=True)
class Known:
    """A finding that is known.

    Attributes:
        rule: Its rule.
        path: What is shared.
        function: The function that changes it.
        fingerprint: By which it is recognised, wherever its line has moved to.
    """

    rule: str
    path: str
    function: str
    fingerprint: str


def read_baseline(path: Path) -> list[Known]:
    """Return what a baseline has.

    Raises:
        OptionError: There is no such file, or it is no baseline.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise OptionError(
                f"{path} is a baseline of version {content['version']}, but this is version "
                f"{_VERSION}: write it anew with --write-baseline."
            )
        return [Known(**{name: str(one[name]) for name in _NAMES}) for one in content["findings"]]
    except FileNotFoundError:
        raise OptionError(f"there is no baseline {path}: write it with --write-baseline.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"{path} is no baseline of sandboxpool check: {error!r}. Write it anew with "
            "--write-baseline."
        ) from None


_NAMES = [field.name for field in attrs.fields(Known)]


def save_baseline(path: Path, findings: Sequence[Finding]) -> None:
    """Write what was found as the new baseline, sorted, so that changes can be compared.

    Raises:
        OptionError: The file cannot be written.
    """
    known = sorted(Known(one.rule, one.path, one.function, one.fingerprint) for one in findings)
    content = {"version": _VERSION, "findings": [attrs.asdict(one) for one in known]}
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"the baseline {path} cannot be written: {error}.") from None


def compare(
    findings: Sequence[Finding], baseline: Sequence[Known], rules: Collection[str]
) -> tuple[list[Finding], list[Finding], list[Known]]:
    """Return what is new, what is known, and what the baseline has that is gone.

    Two findings may look the same, in two equal lines of a function: each is known as often as the
    baseline has it. Of rules that were not looked for nothing is gone.
    """
    left = Counter(one.fingerprint for one in baseline)
    new, known = [], []
    for finding in findings:
        if left[finding.fingerprint] > 0:
            left[finding.fingerprint] -= 1
            known.append(finding)
        else:
            new.append(finding)
    gone = []
    for one in baseline:
        if left[one.fingerprint] > 0 and one.rule in rules:
            left[one.fingerprint] -= 1
            gone.append(one)
    return new, known, gone
