"""Tables of the paper as data: which models are compared, on whose play, sampled how.

A new table is one function here. Names of play and models begin with the player, and end with the
game they belong to: `agent-PrivateEye-Atari2600`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from envs.games.base import EnvOptions
from experiments.pipeline.config import PipelineConfig
from worldmodel.config import GenerationMode

TOGETHER = "together"
"""Name of all games in those of play and models."""
PLAYERS = (
    "random", "agent", "archive", "random-features", "vae", "test", "base", "held-out",
    "trained-agent", "basic", "diverse", "pretraining",
)  # fmt: skip
"""Players of a table, in the order of their seeds. base: the random play that the base model is
trained on; test: an expert's or deep play; held-out: more random play, of which no training knows;
random-features and vae: the agent with these rewards; trained-agent: one trained on the game's own
reward; basic and diverse: the test sets of CoinRun, random and that agent's play; pretraining:
random play of many games, which the base model learns from first."""
EXPLORED = {"agent": "explored", "archive": "explored, archive"}
"""Explorer -> word in the tables."""
RANDOM_DATA = "random data"
"""Baseline of the models on explored data."""


@dataclass(frozen=True)
class Play:
    """Episodes of one player, of one game or of all."""

    player: str
    games: tuple[str, ...]
    options: EnvOptions = ()
    """Options of the games, such as the levels of CoinRun."""
    agent: "Play | None" = None
    """Play whose agent plays here too; None for the player's own."""

    @property
    def name(self) -> str:
        """Name of the episodes."""
        return named(self.player, self.games)


@dataclass(frozen=True)
class Model:
    """A world model of a table."""

    name: str
    play: tuple[Play, ...]
    """Episodes that it is trained on."""
    start: Literal["base", "tokenizer", "decoder", "scratch"] = "base"
    """Parts that it starts with. base: decoder and dynamics model are fine-tuned. tokenizer: that
    of the base or of the model `tokenizer_of`, with dynamics from scratch. decoder: that of the
    model `decoder_of`, with dynamics from scratch. scratch: none."""
    decoder_of: str = ""
    tokenizer_of: str = ""
    latent: bool = False
    """GenieRedux, whose latent action model is trained on the same play, not GenieRedux-G."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the sizes of the model."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table: a model on a test set."""

    group: str
    """Game, or all games."""
    data: str
    """Data of the model, or in table 6 the reward of the player."""
    label: str
    model: str
    test: tuple[Play, ...]
    mode: GenerationMode = "one_pass"
    part: Literal["prediction", "reconstruction", "lam"] = "prediction"
    """Frames that are compared with the true ones: predictions of the model, reconstructions of its
    tokenizer, or predictions of its latent action model from true frames."""
    actions: Literal["recorded", "inferred"] = "recorded"
    """Actions that drive the model: the recorded ones, or those that its latent action model infers
    from the true frames."""
    baseline: str = ""
    """Model that the row is compared with window by window; empty for none."""
    baseline_mode: GenerationMode | None = None
    """Sampling of the baseline; None for that of the row."""
    baseline_actions: Literal["recorded", "inferred"] | None = None
    """Actions that drive the baseline; None for those of the row."""

    @property
    def source(self) -> str:
        """Source of the scores: recorded or inferred actions, or lam."""
        return "lam" if self.part == "lam" else self.actions


@dataclass(frozen=True)
class TablePlan:
    """A table: its models and its rows."""

    models: tuple[Model, ...]
    rows: tuple[TableRow, ...]
    note: str = ""
    compared_with: str = ""
    """Name of the rows' baseline; empty without one."""
    more_plays: tuple[Play, ...] = ()
    """Episodes that are neither trained nor tested on."""
    base: Play | None = None
    """Random play that the base model is trained on; None for that of all games."""
    trains_base: bool = True
    """False if no row needs the base model."""

    @property
    def plays(self) -> tuple[Play, ...]:
        """Return all episodes of the table, each once: those for training, then the tests."""
        trained = (play for model in self.models for play in model.play)
        tested = (play for row in self.rows for play in row.test)
        return tuple(dict.fromkeys([*trained, *tested, *self.more_plays]))


def named(player: str, games: Sequence[str]) -> str:
    """Return the name of a player's episodes or of the model that is trained on them."""
    return f"{player}-{games[0] if len(games) == 1 else TOGETHER}"


def base_episodes(c: PipelineConfig) -> Play:
    """Return the random play that the base model is trained on."""
    return Play("base", c.games_of_base)


def ablation(c: PipelineConfig) -> TablePlan:
    """Return table 4: what the token input, the TDCE loss and autoregressive sampling give."""
    base = base_episodes(c)
    test = (Play("held-out", base.games),)
    changes = {
        "plain": {"token_input": False, "tdce_weight": 0.0},
        "token-input": {"token_input": True, "tdce_weight": 0.0},
        "tdce": {"token_input": True, "tdce_weight": 3.0},
    }
    models = tuple(
        Model(name, (base,), "tokenizer", settings={"dynamics": values})
        for name, values in changes.items()
    )
    pretrained = (
        TableRow("", "", "GenieRedux-G of many games", "pretrained", test),
        TableRow("", "", "the same, trained on these games (base)", "base", test),
    )
    rows = (
        *(pretrained if c.pretraining_games else ()),
        TableRow("", "", "GenieRedux-G", "plain", test),
        TableRow("", "", "+ token input", "token-input", test, baseline="plain"),
        TableRow("", "", "+ TDCE loss", "tdce", test, baseline="plain"),
        TableRow(
            "", "", "autoregressive", "tdce", test, "autoregressive",
            baseline="plain", baseline_mode="one_pass",
        ),
    )  # fmt: skip
    note = "On random play that no training has seen. The last four rows are trained from scratch."
    return TablePlan(models, rows, note, compared_with="that without both")


def exploration_models(c: PipelineConfig, games: tuple[str, ...]) -> Iterator[Model]:
    """Yield the models on random play and on that of each explorer, and one from scratch."""
    one_by_one = [(game,) for game in games]
    for player in ("random", *c.explorers):
        yield Model(named(player, games), tuple(Play(player, game) for game in one_by_one))
    main = c.explorers[0]
    yield Model(
        named("scratch", games),
        tuple(Play(main, game) for game in one_by_one),
        "decoder",
        decoder_of=named(main, games),
    )


def exploration_rows(
    c: PipelineConfig,
    games: tuple[str, ...],
    modes: Sequence[GenerationMode] = ("one_pass", "autoregressive"),
) -> Iterator[TableRow]:
    """Yield the rows of a game, or of all games together.

    All models are sampled in the first mode, the fine-tuned ones in the others too.
    """
    group = games[0] if len(games) == 1 else "all games"
    test = tuple(Play("test", (game,)) for game in games)
    random, main = named("random", games), c.explorers[0]
    tuned = "GenieRedux-G-ft"

    def row(player: str, label: str, mode: GenerationMode, **more: Any) -> TableRow:
        model = player if player == "base" else named(player, games)
        data = {"base": "random", "scratch": EXPLORED[main], **EXPLORED}.get(player, player)
        if mode == "autoregressive":
            data += ", autoregressive"
        baseline = "" if model == random else random
        return TableRow(group, data, label, model, test, mode, baseline=baseline, **more)

    first, *others = modes
    yield row("base", "GenieRedux-G, base", first)
    yield row("random", tuned, first)
    yield row(main, "tokenizer-ft", first, part="reconstruction")
    yield row("scratch", "GenieRedux-G, from scratch", first)
    yield from (row(explorer, tuned, first) for explorer in c.explorers)
    for mode in others:
        yield from (row(player, tuned, mode) for player in ("random", *c.explorers))


def each_game(c: PipelineConfig) -> TablePlan:
    """Return table 5: models fine-tuned on random and on explored data, game by game."""
    models = [model for game in c.games for model in exploration_models(c, (game,))]
    rows = [row for game in c.games for row in exploration_rows(c, (game,))]
    return TablePlan(tuple(models), tuple(rows), compared_with=RANDOM_DATA)


def first_game(c: PipelineConfig) -> TablePlan:
    """Return table 11: all models of the first game, sampled autoregressively."""
    games = c.games[:1]
    rows = exploration_rows(c, games, ("autoregressive",))
    models = tuple(exploration_models(c, games))
    return TablePlan(models, tuple(rows), compared_with=RANDOM_DATA)


def all_games(c: PipelineConfig) -> TablePlan:
    """Return table 12: one model fine-tuned on the data of all games."""
    rows = exploration_rows(c, c.games)
    models = tuple(exploration_models(c, c.games))
    return TablePlan(models, tuple(rows), compared_with=RANDOM_DATA)


def rewards(c: PipelineConfig) -> TablePlan:
    """Return table 6: how wrong the base model is on the play of agents with other rewards."""
    labels = {"random-features": "RF", "vae": "VAE", "agent": "uncertainty"}
    rows = [
        TableRow(game, label, "GenieRedux-G, base", "base", (Play(player, (game,)),))
        for game in c.games
        for player, label in labels.items()
    ]
    note = "Low values are the aim of an explorer: the model is wrong about its play."
    return TablePlan((), tuple(rows), note)
