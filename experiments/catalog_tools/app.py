"""The annotation page: an app that shows a game's clips and takes its labels, on this machine only.

The page is `page.html`, whole in itself. Another site that a browser has open cannot use the app: it answers only
to a loopback name in the Host header (so no foreign name can be pointed at it) and takes labels only from its own page.
"""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from envs.utils.errors import InputError
from experiments.catalog_tools import labels
from experiments.catalog_tools.clip_format import read_clips
from experiments.catalog_tools.recorder import Recorder

PAGE = Path(__file__).with_name("page.html")
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

# What the page asks in each column; the columns of the buttons are those of `Recorder`'s clips.
QUESTIONS = {
    "view": "Where is the player's figure seen from?",
    "axis": "Along which axis can it move?",
    "motion": "What kind of game is it?",
    "right": "What does right do?",
    "left": "What does left do?",
    "up": "What does up do?",
    "down": "What does down do?",
    "jump": "What does the first button do?",
    "secondary": "What does the second button do?",
    "transition": "Does the start need a button or a wait before the game answers?",
    "scrolling": "Does the background move along?",
    "confidence": "How sure are you of this game's labels?",
}
SURENESS = dict(zip(labels.CONFIDENCES, ("guessed", "unsure", "fairly sure", "certain"), strict=True))


class Label(BaseModel):
    """What the page sends: the word for one cell, empty to take it back."""

    value: str


class Labels:
    """One annotator's file, read anew before each change, so that what was edited by hand meanwhile is not lost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def rows(self) -> dict[str, labels.Row]:
        """The rows so far; none where there is no file. Raises InputError for a damaged file."""
        return labels.load(self.path).rows if self.path.exists() else {}

    def put(self, game: str, column: str, value: str) -> labels.Row:
        """Set one cell and save the file. The row as it is now. Raises InputError for a word that does not fit."""
        if column not in labels.LABELLED:
            raise InputError(f"{column!r} is no column to label: those are {', '.join(labels.LABELLED)}")
        if wrong := labels.fault(column, value):
            raise InputError(wrong)
        with self._lock:
            rows = self.rows()
            row = rows.get(game) or labels.new_row(game)
            rows[game] = row | {column: value}
            labels.save(self.path, rows)
            return rows[game]


def make_app(games: Sequence[str], labels_file: Path, clips_folder: Path, *, seconds: float = 120.0) -> FastAPI:
    """The app for these games, in this order. Its clips are recorded while it runs, each within `seconds`.

    games: canonical names. labels_file: read and written, see `experiments.catalog_tools.labels`. clips_folder: kept for later.
    Raises InputError where the labels file is damaged.
    """
    store = Labels(labels_file)
    store.rows()
    recorder = Recorder(games, clips_folder, seconds)

    @asynccontextmanager
    async def recording(app: FastAPI) -> AsyncIterator[None]:
        recorder.start()
        yield
        recorder.stop()

    app = FastAPI(lifespan=recording, docs_url=None, redoc_url=None, openapi_url=None)
    _guard(app)

    def known(game: str) -> str:
        if game not in games:
            raise HTTPException(404, f"{game} is not among the games of this page")
        return game

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    @app.get("/api/games")
    def everything() -> dict[str, Any]:
        """Columns with their words, and games with their labels so far."""
        rows = store.rows()
        words = {**labels.VOCABULARY, "confidence": labels.CONFIDENCES}
        return {
            "file": str(labels_file),
            "columns": [
                {
                    "name": name,
                    "question": QUESTIONS[name],
                    "words": [[word, SURENESS.get(word, word)] for word in known],
                }
                for name, known in words.items()
            ],
            "games": [
                {"name": game, "row": rows.get(game) or labels.new_row(game), **asdict(recorder.progress(game))}
                for game in games
            ],
        }

    @app.get("/api/games/{game}/clips")
    def clips(game: str) -> dict[str, Any]:
        """How far the game's clips are; when they are ready, what they show and where they are."""
        recorder.hurry(known(game))
        progress = recorder.progress(game)
        ready = read_clips(clips_folder / game) if progress.status == "ready" else None
        if progress.status == "ready" and ready is None:
            return {
                "status": "failed",
                "reason": f"its clips in {clips_folder / game} were removed: start this page anew",
            }
        return {**asdict(progress), "clips": ready}

    @app.get("/api/games/{game}/clips/{number}/{action}.png")
    def picture(game: str, number: int, action: str) -> FileResponse:
        path = clips_folder / known(game) / f"{number}-{action}.png"
        if not action.isalpha() or not path.is_file():
            raise HTTPException(404, f"{game} has no such clip")
        return FileResponse(path, media_type="image/png")

    @app.put("/api/games/{game}/labels/{column}")
    def put(game: str, column: str, label: Label) -> labels.Row:
        """Save one label."""
        return store.put(known(game), column, label.value)

    return app


def _guard(app: FastAPI) -> None:
    """Refuse what other sites send, and answer faults as one line."""

    @app.middleware("http")
    async def own_page_only(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        origin, own = request.headers.get("origin"), f"http://{request.headers.get('host')}"
        if request.method not in ("GET", "HEAD") and origin not in (None, own):
            return JSONResponse({"detail": f"{origin} may not change labels"}, 403)
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    # Added last, so that it comes first.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK), www_redirect=False)

    @app.exception_handler(InputError)
    async def bad_input(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(OSError)
    async def no_file(request: Request, error: Exception) -> JSONResponse:
        """A full disk, for instance: the page must say that the label was not saved."""
        return JSONResponse({"detail": f"not saved: {error}"}, 500)
