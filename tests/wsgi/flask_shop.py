"""A Flask app that blocks, as apps of Flask do; it says on stdout how far it is."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, jsonify, redirect, request, session, stream_with_context

import sandboxpool

CHUNK = 64 * 1024
arrived: dict[str, int] = {}


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def meet(place: str, parties: int) -> None:
    """Block until so many requests of this process are here."""
    arrived[place] = arrived.get(place, 0) + 1
    while arrived[place] < parties:
        time.sleep(0.005)


def create_app() -> Flask:
    app = Flask("shop")
    app.secret_key = "not a secret"
    app.config["USER"] = ""

    @app.get("/pid")
    def pid() -> Any:
        return jsonify(os.getpid())

    @app.get("/echo/<path:rest>")
    def echo(rest: str) -> Any:
        lease = sandboxpool.current_lease()
        return jsonify(
            path=request.path,
            rest=rest,
            query=request.args.to_dict(),
            header=request.headers.get("X-Name"),
            remote=request.remote_addr,
            url=request.url,
            same_lease=request.environ["sandboxpool.lease"] is lease,
        )

    @app.get("/sleep")
    def sleep() -> Any:
        time.sleep(float(request.args["seconds"]))
        return jsonify("rested")

    @app.get("/meet")
    def meeting() -> Any:
        app.config["USER"] = request.args["user"]
        meet(request.args["place"], 2)
        return jsonify(app.config["USER"])

    @app.get("/user")
    def user() -> Any:
        return jsonify(app.config["USER"])

    @app.post("/upload")
    def upload() -> Any:
        digest = hashlib.sha256()
        size = 0
        while part := request.stream.read(CHUNK):
            digest.update(part)
            size += len(part)
            if "slowly" in request.args:
                say("got", size)
        return jsonify(size=size, digest=digest.hexdigest())

    @app.post("/form")
    def form() -> Any:
        file = request.files["file"]
        return jsonify(name=request.form["name"], file=file.filename, size=len(file.read()))

    @app.get("/stream")
    def stream() -> Response:
        def parts() -> Iterator[bytes]:
            for number in range(int(request.args["chunks"])):
                yield bytes([number % 256]) * CHUNK

        return Response(stream_with_context(parts()))

    @app.get("/endless")
    def endless() -> Response:
        def ticks() -> Iterator[bytes]:
            try:
                while True:
                    yield b"tick\n"
                    time.sleep(0.01)
            finally:
                say("the stream is closed")

        return Response(ticks())

    @app.get("/boom")
    def boom() -> Any:
        return 1 / 0

    @app.get("/boom-later")
    def boom_later() -> Response:
        def parts() -> Iterator[bytes]:
            yield b"some"
            raise ValueError("in the middle")

        return Response(parts())

    @app.get("/nothing")
    def nothing() -> Any:
        return "", 204

    @app.get("/login")
    def login() -> Any:
        session["user"] = request.args["user"]
        return redirect("/whoami")

    @app.get("/whoami")
    def whoami() -> Any:
        return jsonify(session.get("user"))

    return app


app = create_app()
