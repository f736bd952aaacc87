"""Rows of the paper's tables, for comparison: game, data, model; FID, PSNR, SSIM, delta-PSNR."""

from collections.abc import Mapping

Labels = tuple[str, str, str]
"""Game, data and model."""
Values = tuple[float | None, float, float, float | None]
"""FID, PSNR in dB, SSIM, delta-PSNR in dB."""

_MARIO, _ISLAND, _SMURFS = "Super Mario Bros.", "Adventure Island II", "Smurfs"
_BASE, _TUNED, _SCRATCH = "GenieRedux-G-50", "GenieRedux-G-50-ft", "GenieRedux-G, from scratch"
_TOKENIZER = "tokenizer-ft"
_AGENT = "trained agent"


def _single_pass_and_autoregressive(game: str, *rows: Values) -> dict[Labels, Values]:
    """Return the seven rows of a game in table 5, or of all games in table 12."""
    labels = (
        ("random", _BASE),
        ("random", _TUNED),
        ("explored", _TOKENIZER),
        ("explored", _SCRATCH),
        ("explored", _TUNED),
        ("random, autoregressive", _TUNED),
        ("explored, autoregressive", _TUNED),
    )
    return {(game, *label): row for label, row in zip(labels, rows, strict=True)}


PAPER_ROWS: Mapping[str, Mapping[Labels, Values]] = {
    "table2": {
        ("CoinRun, basic", "random", "Tokenizer"): (18.14, 38.25, 0.96, None),
        ("CoinRun, basic", "random", "LAM"): (37.01, 33.97, 0.92, None),
        ("CoinRun, basic", "random", "GenieRedux"): (21.88, 25.51, 0.77, None),
        ("CoinRun, basic", "random", "GenieRedux-G"): (18.88, 33.41, 0.92, None),
    },
    "table3": {
        ("CoinRun, diverse", "random", "Tokenizer"): (19.13, 35.85, 0.94, None),
        ("CoinRun, diverse", _AGENT, "Tokenizer-TA"): (11.63, 40.62, 0.97, None),
        ("CoinRun, diverse", "random", "GenieRedux"): (23.97, 23.82, 0.73, None),
        # The delta-PSNR of table 3 is in the text of section 5.
        ("CoinRun, diverse", "random", "GenieRedux-G"): (19.51, 31.66, 0.90, 0.70),
        ("CoinRun, diverse", _AGENT, "GenieRedux-TA"): (12.57, 31.97, 0.90, None),
        ("CoinRun, diverse", _AGENT, "GenieRedux-G-TA"): (12.40, 34.44, 0.92, 1.89),
    },
    "table4": {
        ("", "", "GenieRedux-G-200"): (22.31, 25.11, 0.80, None),
        ("", "", "GenieRedux-G-50"): (23.80, 26.36, 0.84, None),
        ("", "", "+ token input"): (22.96, 26.65, 0.84, None),
        ("", "", "+ TDCE loss"): (22.95, 27.06, 0.85, None),
        ("", "", "autoregressive"): (22.11, 28.07, 0.88, None),
    },
    "table5": {
        **_single_pass_and_autoregressive(
            _ISLAND,
            (41.99, 26.32, 0.81, 0.83),
            (42.34, 27.04, 0.81, 1.19),
            (11.01, 38.95, 0.98, None),
            (11.94, 28.33, 0.88, 0.37),
            (12.77, 30.60, 0.90, 1.47),
            (41.55, 27.82, 0.83, 1.24),
            (11.33, 33.61, 0.94, 2.09),
        ),
        **_single_pass_and_autoregressive(
            _MARIO,
            (29.83, 34.24, 0.94, 0.56),
            (30.13, 34.54, 0.94, 0.54),
            (8.09, 42.00, 0.99, None),
            (9.56, 34.00, 0.95, 0.09),
            (9.55, 36.13, 0.97, 0.57),
            (30.84, 34.85, 0.95, 0.57),
            (9.33, 37.77, 0.97, 0.76),
        ),
        **_single_pass_and_autoregressive(
            _SMURFS,
            (79.51, 21.47, 0.69, 0.47),
            (80.61, 21.83, 0.70, 0.65),
            (17.86, 35.61, 0.98, None),
            (20.43, 35.42, 0.80, 0.85),
            (20.01, 27.45, 0.85, 1.55),
            (80.16, 22.16, 0.71, 0.69),
            (18.97, 29.53, 0.90, 2.06),
        ),
    },
    "table6": {
        (_MARIO, "RF", _BASE): (None, 28.58, 0.94, 0.181),
        (_MARIO, "VAE", _BASE): (None, 24.40, 0.86, 0.087),
        (_MARIO, "uncertainty", _BASE): (None, 23.81, 0.85, 0.065),
        (_ISLAND, "RF", _BASE): (None, 24.82, 0.78, 0.44),
        (_ISLAND, "VAE", _BASE): (None, 16.57, 0.5, 0.072),
        (_ISLAND, "uncertainty", _BASE): (None, 15.20, 0.41, 0.070),
    },
    "table11": {
        (_MARIO, "random, autoregressive", _BASE): (30.48, 34.59, 0.94, 0.55),
        (_MARIO, "random, autoregressive", _TUNED): (30.84, 34.85, 0.95, 0.57),
        (_MARIO, "explored, autoregressive", _TOKENIZER): (8.08, 42.00, 0.99, None),
        (_MARIO, "explored, autoregressive", _SCRATCH): (9.46, 34.38, 0.95, 0.07),
        (_MARIO, "explored, autoregressive", _TUNED): (9.33, 37.77, 0.97, 0.76),
    },
    "table12": _single_pass_and_autoregressive(
        "all games",
        (43.57, 27.55, 0.82, 0.65),
        (43.98, 27.74, 0.82, 0.78),
        (14.02, 37.98, 0.98, None),
        (14.88, 28.91, 0.88, 0.25),
        (14.61, 31.29, 0.91, 1.09),
        (43.69, 28.19, 0.83, 0.79),
        (14.49, 33.14, 0.93, 1.46),
    ),
    "appendixF5": {
        ("CoinRun, basic", "random", "Jafar"): (154.12, 12.66, 0.48, None),
        ("CoinRun, basic", "random", "GenieRedux, Jafar's sizes"): (46.12, 17.91, 0.62, None),
    },
    "table13": {
        ("CoinRun, basic", _AGENT, "Tokenizer-TA"): (12.10, 39.53, 0.97, None),
        ("CoinRun, basic", _AGENT, "LAM-TA"): (47.73, 28.24, 0.85, None),
        ("CoinRun, basic", _AGENT, "GenieRedux-TA"): (13.26, 25.47, 0.82, None),
        ("CoinRun, basic", _AGENT, "GenieRedux-G-TA"): (13.01, 32.09, 0.94, None),
    },
}
"""Table -> its rows, as printed in the paper."""
