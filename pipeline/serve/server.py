"""The served model and the page, in one process."""

import socket
import sys
import webbrowser
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.errors import PipelineError
from pipeline.serve.limits import Limits, refusal
from pipeline.serve.picture import SIDE, read_picture
from pipeline.tracking.serving import Served, load_registered
from pipeline.tracking.store import open_store
from pipeline.tracking.tags import ACCURACY
from pipeline.tracking.ui import HOST, free_port

PAGE = Path(__file__).parent / "page.html"
LARGEST = 1 << 20  # bytes of a picture
PNG = "image/png"
OWN_NAMES = [HOST, "localhost"]  # another name is a page elsewhere that was made to point here
EXTRAS = ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")  # FastAPI's own pages load code from elsewhere
# The page is one file: it loads nothing, talks to this server alone, and is shown in no other page.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def serve(root: Path, name: str, alias: str, port: int) -> None:
    """Serve on loopback until interrupted, and say where. Raises PipelineError if there is nothing to serve."""
    served = load_registered(open_store(root), name, alias)
    app = with_page(served, name)
    config = uvicorn.Config(app, host=HOST, port=free_port(port), log_level="warning")
    listener = config.bind_socket()
    # Else each answer waits 40 ms for the client to acknowledge its head: asyncio sets it for sockets of its own alone.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.listen(config.backlog)  # who follows the address below at once waits, and is not refused
    address = f"http://{HOST}:{config.port}"
    print(f"Version {served.version} of {name} answers at {address}/invocations")
    if served.image_shape == (SIDE, SIDE):
        print(f"Draw a digit at {address}")
        if sys.stdout.isatty():
            webbrowser.open(address)
    print("Ctrl-C ends it.", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def with_page(served: Served, name: str) -> FastAPI:
    """MLflow's application with the page, what it asks, and a check of the host name that is asked for."""
    app = served.app
    app.add_middleware(Limits, own_names=OWN_NAMES)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=OWN_NAMES)
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") not in EXTRAS]

    @app.get("/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})

    @app.get("/about")
    def about() -> dict[str, Any]:
        accuracy = served.tags.get(ACCURACY)
        told = {"name": name, "version": served.version, "image_shape": served.image_shape}
        return told | {"accuracy": accuracy and float(accuracy)}

    @app.post("/read")
    async def read(request: Request) -> JSONResponse:
        content = await request.body()
        if len(content) > LARGEST:
            return refusal(f"a picture has at most {LARGEST >> 20} MiB", 413)
        if request.headers.get("content-type", PNG) != PNG:
            return refusal(f"send the picture as {PNG}", 415)
        try:
            return JSONResponse(await run_in_threadpool(answer, served, content))
        except PipelineError as error:
            return refusal(str(error), 400)

    return app


def answer(served: Served, content: bytes) -> dict[str, Any]:
    """What the model reads in a PNG: the probability of each class, and the image that it was given."""
    if served.image_shape != (SIDE, SIDE):
        raise PipelineError(f"pictures are read for networks of {SIDE}×{SIDE} pixels, not {served.image_shape}")
    image = read_picture(content)
    (probabilities,) = served.model.predict(image[None])
    return {"probabilities": probabilities.tolist(), "image": image.tolist()}
