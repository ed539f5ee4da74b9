"""A site of Django in one file, without a project around it, and wrapped in each way."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from typing import Any

import django  # type: ignore[import-untyped]
from django.conf import settings  # type: ignore[import-untyped]
from django.core.handlers.wsgi import WSGIHandler  # type: ignore[import-untyped]
from django.db import connection  # type: ignore[import-untyped]
from django.http import (  # type: ignore[import-untyped]
    FileResponse,
    HttpRequest,
    JsonResponse,
    StreamingHttpResponse,
)
from django.urls import path  # type: ignore[import-untyped]
from django.utils import translation  # type: ignore[import-untyped]

import sandboxpool

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["127.0.0.1"],
    SECRET_KEY="not a secret",
    USE_I18N=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    MIDDLEWARE=[f"{__name__}.Remember"],
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"]},
    },
)


class Remember:
    """Middleware that keeps the user of a request on itself, as one does not."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        self.user = ""

    def __call__(self, request: HttpRequest) -> Any:
        request.remember = self
        self.user = request.GET.get("user", self.user)
        return self.get_response(request)


def pid(request: HttpRequest) -> JsonResponse:
    return JsonResponse(os.getpid(), safe=False)


def echo(request: HttpRequest, rest: str) -> JsonResponse:
    return JsonResponse({"rest": rest, "path": request.path, "query": request.GET.dict()})


def sleep(request: HttpRequest) -> JsonResponse:
    time.sleep(float(request.GET["seconds"]))
    return JsonResponse(request.remember.user, safe=False)


def language(request: HttpRequest) -> JsonResponse:
    translation.activate(request.GET["language"])
    time.sleep(0.05)
    return JsonResponse(translation.get_language(), safe=False)


def upload(request: HttpRequest) -> JsonResponse:
    digest = hashlib.sha256()
    while part := request.read(65_536):
        digest.update(part)
    return JsonResponse(digest.hexdigest(), safe=False)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        for number in range(100):
            yield bytes([number]) * 65_536

    return StreamingHttpResponse(parts())


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(open(__file__, "rb"))


def database(request: HttpRequest) -> JsonResponse:
    with connection.cursor() as cursor:
        cursor.execute("drop table if exists users")  # a thread may have it from before
        cursor.execute("create temporary table users (name text)")
        cursor.execute("insert into users values (%s)", [request.GET["user"]])
    time.sleep(0.1)
    with connection.cursor() as cursor:
        cursor.execute("select name from users")
        return JsonResponse([name for (name,) in cursor.fetchall()], safe=False)


urlpatterns = [
    path("pid", pid),
    path("echo/<path:rest>", echo),
    path("sleep", sleep),
    path("language", language),
    path("upload", upload),
    path("stream", stream),
    path("file", file),
    path("database", database),
]


def create_app() -> Any:
    django.setup()
    return WSGIHandler()


options: dict[str, Any] = {"wsgi": True, "max_size": 60, "stats": "/stats"}

loop = sandboxpool.wrap(create_app, factory=True, run_in="loop", **options)
thread = sandboxpool.wrap(create_app, factory=True, run_in="thread", **options)
cooperative = sandboxpool.wrap(
    create_app, factory=True, run_in="cooperative", hooks=("sleep",), **options
)
shared = sandboxpool.wrap(create_app(), run_in="thread", **options)
