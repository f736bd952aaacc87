"""Serving of the user studies, with the participants' links."""

from envs.utils.progress import console
from envs.utils.storage import lock
from experiments.studies.people.answers import AnswerStore
from experiments.studies.people.app import make_people_app
from experiments.studies.people.arguments import PeopleServeArgs
from experiments.studies.people.material import load_material
from experiments.web_page import serve_page


def run(args: PeopleServeArgs) -> None:
    """Print the links and serve the page until Ctrl+C, then print how many answers there are."""
    material = load_material(args.out)
    folder_lock = lock(args.out)
    try:
        store = AnswerStore(material, args.participants)

        def announce(url: str) -> None:
            for token, number in store.participants.items():
                console.print(f"{url}p/{token}  participant {number}, {_progress(store, number)}")
            console.print(f"{url}  Ctrl+C ends it")

        serve_page(make_people_app(store, args.host), args.host, args.port, announce)
        for number in store.participants.values():
            console.print(f"participant {number}: {_progress(store, number)}")
    finally:
        folder_lock.close()


def _progress(store: AnswerStore, participant: int) -> str:
    """Return the number of answers of a participant in words."""
    return f"{len(store.answers(participant))} of {len(store.order(participant))} answered"
