"""Web app of the user studies: it shows a participant's samples and saves each answer.

A participant is known by the token of the link. The page and its requests name samples by their
place in the participant's order, so that nothing tells which model made a clip.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel

from experiments.studies.people.answers import AnswerStore, Shown
from experiments.web_page import LOOPBACK, protect_page

PAGE = Path(__file__).with_name("page.html")
router = APIRouter()


class Choice(BaseModel):
    """Body of a request to answer: 1 to 5, or left, same or right."""

    choice: str


def make_people_app(store: AnswerStore, host: str) -> FastAPI:
    """Return the app, which answers to loopback names and `host`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store = store
    app.include_router(router)
    protect_page(app, [*LOOPBACK, host])
    return app


def _store(request: Request) -> AnswerStore:
    return cast(AnswerStore, request.app.state.store)


Store = Annotated[AnswerStore, Depends(_store)]


def _participant(token: str, store: Store) -> int:
    if token not in store.participants:
        raise HTTPException(404, "this link belongs to no participant: open the one you were given")
    return store.participants[token]


Participant = Annotated[int, Depends(_participant)]


def _shown(participant: Participant, number: int, store: Store) -> Shown:
    order = store.order(participant)
    if not 0 <= number < len(order):
        raise HTTPException(404, f"there is no sample {number}")
    return order[number]


@router.get("/p/{token}")
def show_people_page(participant: Participant) -> HTMLResponse:
    """Return the page, the same for everyone."""
    return HTMLResponse(PAGE.read_text(encoding="utf-8"))


@router.get("/p/{token}/state")
def show_state(participant: Participant, store: Store) -> dict[str, Any]:
    """Return the participant's samples in order, with the answers given so far."""
    answers, settings = store.answers(participant), store.material.settings
    samples = []
    for shown in store.order(participant):
        answer = answers.get(shown.sample.id)
        samples.append(
            {
                "study": shown.sample.study,
                "action": shown.sample.action,
                "choice": answer.choice if answer else None,
            }
        )
    return {"frames": settings["frames"], "fps": settings["fps"], "samples": samples}


@router.get("/p/{token}/clips/{number}/{side}")
def show_clip(
    shown: Annotated[Shown, Depends(_shown)], side: Literal["0", "1"], store: Store
) -> Response:
    """Return a clip as a picture, its frames side by side. Its headers name no file."""
    clip = store.material.folder / shown.clips[int(side)]
    return Response(clip.read_bytes(), media_type="image/png")


@router.put("/p/{token}/answers/{number}")
def save_answer(
    participant: Participant,
    number: int,
    shown: Annotated[Shown, Depends(_shown)],
    choice: Choice,
    store: Store,
) -> Choice:
    """Save one answer and return it."""
    store.put(participant, number, choice.choice)
    return choice
