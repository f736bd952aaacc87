"""Web apps of pages that run on this machine: their security, and serving until Ctrl+C.

Other sites that are open in the browser cannot use such an app: it requires one of its own names in
the Host header (against DNS rebinding), and accepts changes only from its own page.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from envs.utils.errors import InputError
from envs.utils.progress import console

LOOPBACK = ("127.0.0.1", "localhost")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; connect-src 'self'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def protect_page(app: FastAPI, hosts: Sequence[str] = LOOPBACK) -> None:
    """Make an app answer to these host names only, and to changes of its own page only.

    Bad input becomes an answer with status 400, an answer that could not be saved one with 500.
    """
    app.middleware("http")(_require_own_page)
    # Added last, so that it runs first.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.exception_handler(InputError)(_answer_bad_input)
    app.exception_handler(OSError)(_answer_not_saved)


def serve_page(app: FastAPI, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve an app until Ctrl+C. `announce` is called with its URL as soon as browsers may ask."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise InputError(
                f"--port {port} cannot be used: {error.strerror}; 0 selects a free one"
            ) from None
        listener.listen()  # at once, so that a browser waits for the app instead of being refused
        announce(f"http://{host}:{listener.getsockname()[1]}/")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=2
        )
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # the normal end, after uvicorn has closed everything
            console.print()


async def _require_own_page(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Refuse changes requested by another site; add the security headers."""
    origin, own = request.headers.get("origin"), f"http://{request.headers.get('host')}"
    if request.method not in ("GET", "HEAD") and origin not in (None, own):
        return JSONResponse({"detail": f"{origin} may not change anything here"}, 403)
    response = await call_next(request)
    response.headers.update(HEADERS)
    return response


async def _answer_bad_input(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 400)


async def _answer_not_saved(request: Request, error: Exception) -> JSONResponse:
    """Report that a change was not saved, e.g. on a full disk."""
    return JSONResponse({"detail": f"not saved: {error}"}, 500)
