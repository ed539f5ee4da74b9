"""`sandboxpool check`: reads an app and reports state that its requests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from sandboxpool._exceptions import OptionError, SandboxPoolError
from sandboxpool.check._baseline import compare, read_baseline, save_baseline
from sandboxpool.check._report import Report, as_github, as_json, as_sarif
from sandboxpool.check._rules import RULES, find_rule, rule_names
from sandboxpool.check._static import Reading, read_app

from ._check_display import show_report, show_rule, show_rules, show_summary
from ._project_file import did_you_mean, find_project_file, read_project_file

_BASELINE = "sandboxpool-baseline.json"
_FILES = ("app_dir", "output", "baseline")
_FORMATS: dict[str, Callable[[Report], str]] = {
    "json": as_json,
    "sarif": as_sarif,
    "github": as_github,
}


class _CannotCheckError(click.ClickException):
    """It could not be checked; 1 would mean that something was found."""

    exit_code = 2


class _Names(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since Click 8.4
    """Names with commas between them."""

    name = "name,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
        if isinstance(value, str):
            return tuple(one.strip() for one in value.split(",") if one.strip())
        self.fail(f"{value!r} are no names, like shop.models,shop.views", param, ctx)


class _Rules(_Names):
    """Names of rules, as ids; an id may be cut short, `SP1` is each that begins so."""

    name = "rule,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found: list[str] = []
        for name in super().convert(value, param, ctx):
            rule = find_rule(name)
            ids = [rule.id] if rule else [one for one in RULES if one.startswith(name.upper())]
            if not ids:
                near = did_you_mean(name, rule_names()) or did_you_mean(name.upper(), RULES)
                self.fail(f"there is no rule {name!r}.{near}", param, ctx)
            found.extend(ids)
        return tuple(found)


class _Check(click.Command):
    """`check`, which looks into pyproject.toml before it reads its options."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        known = {param.name for param in self.params if param.name} - {"explain", "write_baseline"}
        try:
            path = find_project_file(Path.cwd())
            table = read_project_file(path, known, table="check") if path else {}
            # The app that is served is the one to check, unless the table names another one.
            if path and "app" not in table:
                served = read_project_file(path, None)
                table.update({"app": served["app"]} if isinstance(served.get("app"), str) else {})
        except OptionError as error:
            raise click.UsageError(str(error)) from None
        for name in _FILES:
            if path and isinstance(table.get(name), str):
                table[name] = os.path.join(path.parent, table[name])
        app = table.pop("app", None)
        extra["default_map"] = {**table, **(extra.get("default_map") or {})}
        context = super().make_context(info_name, args, parent, **extra)
        if context.params.get("app") is None:
            context.params["app"] = app
        return context


def _check(
    app: str | None,
    app_dir: str,
    packages: tuple[str, ...],
    exclude: tuple[str, ...],
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    format: str,
    output: str | None,
    baseline: str | None,
    write_baseline: bool,
    explain: str | None,
) -> None:
    context = click.get_current_context()
    console = Console(highlight=False, markup=False)
    if explain is not None:
        _explain(console, explain)
        context.exit(0)
    if not isinstance(app, str) or not app:
        raise click.UsageError(
            "name the app to check, like `sandboxpool check shop.main:app`, or write "
            'app = "shop.main:app" into [tool.sandboxpool] of pyproject.toml.'
        )
    rules = [name for name in select or RULES if name not in ignore]
    if not rules:
        raise click.UsageError("no rule is left: --ignore names each that --select does.")
    try:
        reading = _read(app, Path(app_dir), packages, exclude)
        findings = [finding for finding in reading.findings if finding.rule in rules]
        if write_baseline:
            path = Path(baseline or _BASELINE)
            save_baseline(path, findings)
            Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(
                f"{len(findings)} findings are known now, in {path}."
                + ("" if baseline else f" Give --baseline {path} from now on.")
            )
            context.exit(0)
        known = read_baseline(Path(baseline)) if baseline else []
    except SandboxPoolError as error:
        raise _CannotCheckError(str(error)) from None
    new, old, gone = compare(findings, known, rules)
    report = Report(
        app=app,
        findings=new,
        known=old,
        gone=gone,
        modules=reading.modules,
        functions=reading.functions,
        notes=reading.unreadable,
    )
    _give(console, report, format, output)
    context.exit(1 if new else 0)


def _read(app: str, app_dir: Path, packages: tuple[str, ...], exclude: tuple[str, ...]) -> Reading:
    """Read the app; what is going on stands on the terminal, if there is one, while it lasts."""
    told = Console(stderr=True, highlight=False)
    shown = told.status("reading") if told.is_terminal and not told.is_dumb_terminal else None
    with shown or nullcontext():
        return read_app(
            app,
            app_dir=app_dir.resolve(),
            packages=packages,
            exclude=exclude,
            progress=(lambda step: shown.update(step)) if shown else (lambda step: None),
        )


def _give(console: Console, report: Report, form: str, output: str | None) -> None:
    if output is None:
        if form == "text":
            show_report(console, report)
        else:
            click.echo(_FORMATS[form](report), nl=False)
        return
    try:
        with open(output, "w", encoding="utf-8") as file:
            if form == "text":
                show_report(Console(file=file, highlight=False, markup=False), report)
            else:
                file.write(_FORMATS[form](report))
    except OSError as error:
        raise _CannotCheckError(f"the report cannot be written: {error}.") from None
    show_summary(console, report)


def _explain(console: Console, name: str) -> None:
    if name.lower() in ("all", "rules"):
        show_rules(console)
        return
    rule = find_rule(name)
    if rule is None:
        near = did_you_mean(name, rule_names()) or did_you_mean(name.upper(), RULES)
        raise click.UsageError(f"there is no rule {name!r}.{near} `--explain all` lists them.")
    show_rule(console, rule)


def _option(name: str, text: str, **kwargs: Any) -> click.Option:
    return click.Option([f"--{name}"], help=text, **kwargs)


check = _Check(
    "check",
    params=[
        click.Argument(["app"], required=False, metavar="MODULE:APP"),
        _option(
            "app-dir",
            "The folder that the app is in.",
            default=".",
            show_default=True,
            type=click.Path(exists=True, file_okay=False),
        ),
        _option("packages", "Further packages that belong to the app.", type=_Names(), default=()),
        _option(
            "exclude",
            "Modules that are left out, like shop.legacy or *.migrations.",
            type=_Names(),
            default=(),
        ),
        _option(
            "select", "Only these rules; SP1 is each that begins so.", type=_Rules(), default=()
        ),
        _option("ignore", "Not these rules.", type=_Rules(), default=()),
        click.Option(
            ["--format"],
            type=click.Choice(["text", *_FORMATS]),
            default="text",
            show_default=True,
            help="The form of the report.",
        ),
        _option(
            "output",
            "Write the report into a file, and only the summary here.",
            type=click.Path(dir_okay=False),
        ),
        _option(
            "baseline",
            "A file of known findings, which are not reported.",
            type=click.Path(dir_okay=False),
        ),
        click.Option(
            ["--write-baseline"],
            is_flag=True,
            help=f"Make what is found known: write the baseline ({_BASELINE}).",
        ),
        _option(
            "explain",
            "Explain a rule, like SP102 or global-write; `all` lists them.",
            metavar="RULE",
        ),
    ],
    callback=_check,
    help="""Find state that the requests of an app share.

    Reads the app's own modules, without importing them, and reports where code that runs in
    requests changes module globals, class attributes, the app, middleware, closures, defaults or
    the process. The app needs no change and need not be wrapped.

    Ends with 0 if nothing was found, with 1 if something was, with 2 if it could not look.
    Each option but --explain and --write-baseline can also be set in the table
    [tool.sandboxpool.check] of the nearest pyproject.toml.
    """,
)
"""The command."""
