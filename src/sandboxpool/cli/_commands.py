"""The commands, made with Click."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import sandboxpool
from sandboxpool._exceptions import OptionError, SandboxPoolError

from ._check import check
from ._project_file import did_you_mean, find_project_file, read_project_file
from ._servers import SERVERS, check_server, check_worker, in_process, run_server
from ._settings import PREFIX, Setting, hand_over, settings


class _Value(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since Click 8.4
    """The text of a setting, checked as soon as it is read."""

    def __init__(self, setting: Setting) -> None:
        self.name = {"count": "n", "names": "name,..."}.get(setting.kind, setting.kind)
        if setting.kind == "policies":
            self.name = "class=policy"
        if setting.choices and setting.kind != "policies":
            self.name = "|".join(
                [*setting.choices, *(["module:name"] if setting.importable else [])]
            )
        elif setting.importable:
            self.name = "module:name"
        self._setting = setting

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name if "|" in self.name or ":" in self.name else self.name.upper()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._setting.read(value)
        except OptionError as error:
            self.fail(str(error), param, ctx)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return [rv]


class _Option(click.Option):
    """An option whose help ends with `[env var: X; default: Y]`."""

    def __init__(self, *args: Any, default_text: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._default_text = default_text

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None:
            return None
        default = f"; default: {self._default_text}" if self._default_text else ""
        return record[0], f"{record[1]}  [env var: {self.envvar}{default}]"


def _option(name: str, default: Any, text: str, **kwargs: Any) -> _Option:
    """Return an option of `serve` that is none of `wrap()`."""
    return _Option(
        ["--" + name.replace("_", "-"), name],
        envvar=PREFIX + name.upper(),
        default=default,
        help=text,
        default_text="" if kwargs.get("is_flag") else str(default),
        **kwargs,
    )


def _wrap_option(setting: Setting) -> _Option:
    """Return the option of `serve` for an option of `wrap()`."""
    kwargs: dict[str, Any] = {"type": _Value(setting)}
    names = setting.flag
    if setting.kind == "flag":
        names = f"{setting.flag}/--no-{setting.flag[2:]}"
        kwargs = {}
    elif setting.kind in ("names", "policies"):
        kwargs["multiple"] = True
    if setting.name == "hooks":
        kwargs.update(is_flag=False, flag_value="default")  # `--hooks` alone is enough
    return _Option(
        [names, setting.name],
        envvar=setting.envvar,
        default=None,
        help=setting.help,
        default_text=setting.default_text,
        **kwargs,
    )


_OWN = [
    _option("server", "uvicorn", "The server.", type=click.Choice(SERVERS)),
    _option("host", "127.0.0.1", "The address to listen at."),
    _option("port", 8000, "The port to listen at.", type=click.IntRange(0, 65535)),
    _option("workers", 1, "How many worker processes.", type=click.IntRange(1)),
    _option("app_dir", ".", "The folder to import the app from.", type=click.Path()),
    _option("reload", False, "Restart when the code changes; uvicorn only.", is_flag=True),
]


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(sandboxpool.__version__, message="%(prog)s %(version)s")
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Give every request its own app: pooled, isolated sandboxes for ASGI apps."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@commands.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0.2),
    default=3.0,
    show_default=True,
    help="How long users ask the app that leaks, each time.",
)
@click.option(
    "--users",
    type=click.IntRange(2, 2000),
    default=100,
    show_default=True,
    help="How many ask it at once.",
)
@click.option(
    "--blocked",
    type=click.IntRange(0, 10_000),
    show_default="2000, or what the limits of this machine allow",
    help="How many ask the app that blocks at once; 0 leaves it out.",
)
@click.option(
    "--sleep",
    type=click.FloatRange(0.1, 60),
    default=5.0,
    show_default=True,
    help="For how many seconds it blocks.",
)
def demo(seconds: float, users: int, blocked: int | None, sleep: float) -> None:
    """Show an app that leaks, one that blocks, and both of them wrapped.

    Starts the first under uvicorn twice, sends requests of many users at once, and counts the
    answers that carried the data of someone else. Then starts the second, lets many users ask at
    once, and counts how many are answered in a second: as it is, with run_in="cooperative" and
    with run_in="thread".
    """
    from ._demo import run_demo

    sys.exit(run_demo(seconds=seconds, users=users, blocked=blocked, sleep=sleep))


def _serve(app: str | None, server_args: tuple[str, ...], **values: Any) -> None:
    ctx = click.get_current_context()
    if app is None or app.startswith("-"):
        server_args = server_args if app is None else (app, *server_args)
        app = ctx.lookup_default("app") or os.environ.get(PREFIX + "APP")
    if not app:
        raise click.UsageError(
            "name the app to serve, like `sandboxpool serve shop.main:app`, or write "
            'app = "shop.main:app" into [tool.sandboxpool] of pyproject.toml.'
        )
    options = {}
    for name, setting in settings().items():
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            value = values[name]
            if setting.kind == "names":
                value = [text for texts in value for text in texts]
            elif setting.kind == "policies":
                value = {name: policy for pairs in value for name, policy in pairs.items()}
            options[name] = value
    if options.get("hooks"):
        options.setdefault("run_in", "cooperative")  # what else could they be for
    server, reload, workers = values["server"], values["reload"], values["workers"]
    try:
        check_server(server, reload=reload)
    except OptionError as error:
        raise click.ClickException(str(error)) from None
    app_dir = os.path.abspath(values["app_dir"])
    hand_over(app, app_dir, options)
    if app_dir not in sys.path:
        sys.path.insert(0, app_dir)
    if not in_process(server, workers=workers, reload=reload) and (code := check_worker()):
        sys.exit(code)
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[bold]sandboxpool[/] serves {app} with {server}, {workers} "
        f"worker{'s' if workers > 1 else ''}" + (f"; {given}" if given else ""),
    )
    run_server(
        server,
        host=values["host"],
        port=values["port"],
        workers=workers,
        reload=reload,
        extra=server_args,
    )


class _Serve(click.Command):
    """`serve`, which looks into pyproject.toml before it reads its options."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        known = {param.name for param in self.params if param.name} - {"server_args"}
        try:
            path = find_project_file(Path.cwd())
            table = read_project_file(path, known) if path else {}
            for name, value in table.items():
                setting = settings().get(name)
                if setting is not None:
                    value = setting.read(value)
                    if setting.kind in ("names", "policies"):
                        table[name] = [value]
        except OptionError as error:
            raise click.UsageError(str(error)) from None
        for variable in os.environ:
            name = variable.removeprefix(PREFIX).lower()
            if variable.startswith(PREFIX) and name not in known:
                click.echo(
                    f"Warning: the environment variable {variable} sets no option."
                    f"{did_you_mean(name, known)}",
                    err=True,
                )
        extra["default_map"] = {**table, **(extra.get("default_map") or {})}
        return super().make_context(info_name, args, parent, **extra)


commands.add_command(
    _Serve(
        "serve",
        params=[
            click.Argument(["app"], required=False, metavar="MODULE:APP"),
            click.Argument(
                ["server_args"], nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVER OPTIONS]"
            ),
            *_OWN,
            *map(_wrap_option, settings().values()),
        ],
        callback=_serve,
        help="""Serve an app, every request in a sandbox of its own.

        MODULE:APP is an import string, like shop.main:app; with --factory of a function that
        makes the app. What stands behind -- goes to the server's own command line, as in
        `sandboxpool serve shop.main:app -- --proxy-headers`.

        Each option can also be set by an environment variable, or in the table
        [tool.sandboxpool] of the nearest pyproject.toml, like max-size = 100. The command line
        wins, then the environment, then the table. Write none for no limit.
        """,
    )
)
commands.add_command(check)


def run() -> None:
    """Run the command line; a mistake in what was typed is one line on stderr."""
    try:
        code = commands.main(prog_name="sandboxpool", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        code = error.exit_code
    except SandboxPoolError as error:
        click.echo(f"Error: {error}", err=True)
        code = 1
    except click.Abort:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
