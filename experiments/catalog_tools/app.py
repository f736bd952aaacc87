"""Web app of the annotation page: it shows a game's clips and saves its labels, on this machine.

The page is `page.html`, which loads nothing else. `experiments.web_page` protects the app.
"""

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel

from envs.utils.errors import InputError
from experiments.catalog_tools import labels
from experiments.catalog_tools.clip_format import read_clips
from experiments.catalog_tools.recorder import Recorder
from experiments.web_page import protect_page

PAGE = Path(__file__).with_name("page.html")

QUESTIONS = {
    "view": "From where is the player's character seen?",
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
"""Question of each column; the columns of the buttons are named like the recorder's clips."""
CONFIDENCE_NAMES = dict(
    zip(labels.CONFIDENCES, ("guessed", "unsure", "fairly sure", "certain"), strict=True)
)


class Label(BaseModel):
    """Body of a request to label: the word for one cell, empty to remove it."""

    value: str


class LabelStore:
    """Labels file of one annotator, read before each change so that manual edits are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def rows(self) -> dict[str, labels.Row]:
        """Return the rows of the file. Raises InputError for a damaged one."""
        return labels.load_labels(self.path).rows if self.path.exists() else {}

    def put(self, game: str, column: str, value: str) -> labels.Row:
        """Set one cell, save the file and return the row. Raises InputError for a wrong word."""
        if column not in labels.LABELLED:
            columns = ", ".join(labels.LABELLED)
            raise InputError(f"{column!r} is no column to label: use one of {columns}")
        if fault := labels.fault(column, value):
            raise InputError(fault)
        with self._lock:
            rows = self.rows()
            row = rows.get(game) or labels.new_row(game)
            rows[game] = row | {column: value}
            labels.save(self.path, rows)
            return rows[game]


@dataclass(frozen=True)
class Annotation:
    """State of the app. games: canonical names, in the order of the page."""

    games: Sequence[str]
    store: LabelStore
    recorder: Recorder
    clips_folder: Path


def make_app(
    games: Sequence[str], labels_file: Path, clips_folder: Path, *, seconds: float = 120.0
) -> FastAPI:
    """Return the app for these games, which records their clips while it runs.

    seconds: maximum time to record one game. Raises InputError if the labels file is damaged.
    """
    store, recorder = LabelStore(labels_file), Recorder(games, clips_folder, seconds)
    store.rows()

    @asynccontextmanager
    async def recording(app: FastAPI) -> AsyncIterator[None]:
        recorder.start()
        yield
        recorder.stop()

    app = FastAPI(lifespan=recording, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.annotation = Annotation(games, store, recorder, clips_folder)
    app.include_router(router)
    protect_page(app)
    return app


def _annotation(request: Request) -> Annotation:
    return cast(Annotation, request.app.state.annotation)


State = Annotated[Annotation, Depends(_annotation)]


def _known_game(game: str, state: State) -> str:
    if game not in state.games:
        raise HTTPException(404, f"{game} is not among the games of this page")
    return game


Game = Annotated[str, Depends(_known_game)]
router = APIRouter()


@router.get("/")
def page() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(PAGE.read_text(encoding="utf-8"))


@router.get("/api/games")
def list_games(state: State) -> dict[str, Any]:
    """Return the columns with their words, and the games with their labels."""
    rows = state.store.rows()
    columns = []
    for name, words in {**labels.VOCABULARY, "confidence": labels.CONFIDENCES}.items():
        choices = [[word, CONFIDENCE_NAMES.get(word, word)] for word in words]
        columns.append({"name": name, "question": QUESTIONS[name], "words": choices})
    games = [
        {
            "name": game,
            "row": rows.get(game) or labels.new_row(game),
            **asdict(state.recorder.progress(game)),
        }
        for game in state.games
    ]
    return {"file": str(state.store.path), "columns": columns, "games": games}


@router.get("/api/games/{game}/clips")
def show_clips(game: Game, state: State) -> dict[str, Any]:
    """Return the recording status of a game and, when it is ready, the description of its clips."""
    state.recorder.prioritise(game)
    progress = state.recorder.progress(game)
    if progress.status != "ready":
        return {**asdict(progress), "clips": None}
    folder = state.clips_folder / game
    clips = read_clips(folder)
    if clips is None:
        reason = f"its clips in {folder} were removed: restart this page"
        return {"status": "failed", "reason": reason}
    return {**asdict(progress), "clips": clips}


@router.get("/api/games/{game}/clips/{number}/{action}.png")
def show_picture(game: Game, number: int, action: str, state: State) -> FileResponse:
    """Return the picture with the frames of one clip."""
    path = state.clips_folder / game / f"{number}-{action}.png"
    if not action.isalpha() or not path.is_file():
        raise HTTPException(404, f"{game} has no such clip")
    return FileResponse(path, media_type="image/png")


@router.put("/api/games/{game}/labels/{column}")
def save_label(game: Game, column: str, label: Label, state: State) -> labels.Row:
    """Save one label and return the game's row."""
    return state.store.put(game, column, label.value)
