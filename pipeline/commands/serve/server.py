"""Serve a registered model and the drawing page from one process."""

import socket
import sys
import webbrowser
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.commands.ports import HOST, free_port
from pipeline.commands.serve.connections import BACKLOG, Connection
from pipeline.commands.serve.limits import SCORING, Limits, refusal
from pipeline.commands.serve.payload import images_in
from pipeline.commands.serve.picture import SIDE, read_picture
from pipeline.core.errors import PipelineError
from pipeline.registry.classifier import BadImages
from pipeline.registry.serving import Served, load_registered, predict
from pipeline.tracking.store import open_store
from pipeline.tracking.tags import ACCURACY

PAGE = Path(__file__).parent / "page.html"
DOCS = Path(__file__).parent / "docs.html"
LARGEST = 1 << 20  # bytes of a picture
GRACE = 5  # seconds for responses that are being computed when the server is stopped
PNG, JSON = "image/png", "application/json"
OWN_NAMES = [HOST, "localhost"]  # any other name is DNS rebinding: a foreign domain that resolves to this machine
# Routes of MLflow and FastAPI: two are replaced below, the others are pages that load code from other sites.
LEFT_OUT = (SCORING, "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")
# A page is one file: it loads nothing, connects to this server only, and cannot be framed by another page.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def serve(root: Path, name: str, alias: str, port: int) -> None:
    """Serve on loopback until interrupted, and print the address. Raises PipelineError if no model can be loaded."""
    served = load_registered(open_store(root), name, alias)
    app = with_page(served, name)
    config = uvicorn.Config(
        app,
        host=HOST,
        port=free_port(port),
        http=Connection,
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE,
        log_level="error",  # a warning for each invalid request would fill a disk
    )
    listener = config.bind_socket()
    # Otherwise each response waits 40 ms for the ACK of its headers: asyncio sets this only on sockets that it creates.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.listen(config.backlog)  # clients that connect before the server runs wait instead of failing
    address = f"http://{HOST}:{config.port}"
    print(f"Serving version {served.version} of {name} at {address}/invocations, described at {address}/docs")
    if served.image_shape == (SIDE, SIDE):
        print(f"Draw a digit at {address}")
        if sys.stdout.isatty():
            webbrowser.open(address)
    print("Press Ctrl-C to stop.", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        print()


def with_page(served: Served, name: str) -> FastAPI:
    """Add the page, its endpoints, the request limits and a check of the Host header to MLflow's application."""
    app = served.app
    app.add_middleware(Limits, own_names=OWN_NAMES)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=OWN_NAMES)
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") not in LEFT_OUT]

    @app.get("/")
    def page() -> HTMLResponse:
        return show(PAGE)

    @app.get("/docs")
    def docs() -> HTMLResponse:
        height, width = served.image_shape
        return show(DOCS, HEIGHT=height, WIDTH=width, PIXELS=height * width)

    @app.post(SCORING)
    async def invocations(request: Request) -> Response:
        if request.headers["content-type"].partition(";")[0].strip().lower() != JSON:
            return refusal(f"the Content-Type is not supported: send the images as {JSON}", 415)
        return await run_in_threadpool(score, served, await request.body())

    @app.get("/about")
    def about() -> dict[str, Any]:
        accuracy = served.tags.get(ACCURACY)
        model = {"name": name, "version": served.version, "image_shape": served.image_shape}
        return model | {"accuracy": accuracy and float(accuracy)}

    @app.post("/read")
    async def read(request: Request) -> Response:
        content = await request.body()
        if len(content) > LARGEST:
            return refusal(f"the picture is larger than {LARGEST >> 20} MiB", 413)
        if request.headers.get("content-type", PNG) != PNG:
            return refusal(f"the Content-Type is not supported: send the picture as {PNG}", 415)
        return await run_in_threadpool(answer, served, content)

    return app


def show(page: Path, **values: int) -> HTMLResponse:
    """Return a page with values in place of their names. The page loads nothing from other sites."""
    text = page.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(name, str(value))
    return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})


# The next two return their errors. An exception that leaves the thread is part of a cycle of references, so that all
# images of the request, up to 55 times its size, would stay in memory until the next garbage collection.


def score(served: Served, body: bytes) -> Response:
    """Respond with the probabilities of the images in a JSON body, or with status 400 if they are invalid."""
    try:
        return JSONResponse({"predictions": predict(served, images_in(body)).tolist()})
    except BadImages as error:
        return Response(error.serialize_as_json(), error.get_http_status_code(), media_type=JSON)
    except RecursionError:
        return refusal("the request body is nested too deeply", 400)


def answer(served: Served, content: bytes) -> Response:
    """Classify the digit in a PNG: the probability of each class, and the image that the model received."""
    if served.image_shape != (SIDE, SIDE):
        return refusal(f"drawings require a model for {SIDE}×{SIDE} pixels, not {served.image_shape}", 400)
    try:
        image = read_picture(content)
        (probabilities,) = predict(served, image[None])
        return JSONResponse({"probabilities": probabilities.tolist(), "image": image.tolist()})
    except PipelineError as error:
        return refusal(str(error), 400)
