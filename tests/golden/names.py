"""Every name of the package that the guard uses, so that a rename changes one line here and no recorded file.

Each table maps a name in the recorded files to the name in the package today. Jobs and settings are written with
recorded names and translated by `as_today`; the package's results are translated back by `as_recorded`.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hybrid_ray import HybridConfig, HybridTrainer, load_study
from hybrid_ray.config.predictors import OPTIONS
from hybrid_ray.run_result import RunResult

__all__ = [
    "COMMAND_LINE",
    "NEW_COLUMNS",
    "HybridTrainer",
    "as_recorded",
    "as_today",
    "hybrid_config",
    "load_study",
    "result_as_recorded",
    "text_as_recorded",
]

COMMAND_LINE = "hybrid_ray.cli"  # run with python -m

PREDICTORS = {
    "off": "none",
    "nothing": "zero",
    "coast": "momentum",
    "ema_nesterov": "ema_nesterov",
    "snoo": "snoo",
    "linear_fit": "linear_fit",
    "random": "random",
    "reversed": "reversed",
}
SPLITS = {"search": "val", "confirm": "test"}  # keys of a result's ``heldout``
PHASES = {"warmup": "warmup", "full": "full", "predict": "predict", "correct": "correct"}
ARMS = {
    name: name
    for name in (
        "baseline",
        "hybrid",
        "frontier",
        "equal_steps",
        "equal_time",
        "placebo",
        "random_direction",
        "reversed",
        "lr_matched",
    )
}
# Settings of jobs, attributes of a step's result, keys of ``statistics()`` and of files, columns: add the renamed ones.
FIELDS: dict[str, str] = {"misses": "overshoots", "looks": "interim_analyses", "confirm_loss": "test_loss"}
# Printed texts in which only names changed: (regular expression of today's words, recorded words).
TEXTS: tuple[tuple[str, str], ...] = (
    (
        r"one of none, ema_nesterov, snoo, linear_fit, momentum, zero",
        "one of off, ema_nesterov, snoo, linear_fit, coast, nothing",
    ),
    (r"interim_analyses", "looks"),
)

NEW_COLUMNS = {"end", "equal_to"}  # columns of a study's tables that were added after they were recorded
# Recorded fields of a result that are properties of `RunResult` today, and those that ``statistics`` repeated.
DERIVED = ("steps", "real_steps", "predicted_steps", "train_seconds", "phase_steps")
DERIVED_STATISTICS = (
    *("steps", "real_steps", "predicted_steps", "backward_reduction"),
    *("phase_steps", "phase_shares", "phase_seconds", "part_seconds"),
)

_VALUES = {"predictor": PREDICTORS, "arms": ARMS, "arm": ARMS, "phase": PHASES, "split": SPLITS}
_KEYS = {"heldout": SPLITS, "phase_steps": PHASES, "phase_shares": PHASES, "runs": ARMS, "comparisons": ARMS}


def hybrid_config(settings: Mapping[str, Any]) -> HybridConfig:
    """The configuration for recorded settings, in which predictor options are settings of the method."""
    name = settings.get("predictor", "ema_nesterov")
    every = {option.name for kind in OPTIONS.values() for option in fields(kind)}
    moving = "ema_nesterov" if name == "reversed" else name  # when these were recorded, it reversed no other
    own = {option.name for option in fields(OPTIONS[moving])}
    options = {key: value for key, value in settings.items() if key in own}
    rest = {key: value for key, value in settings.items() if key not in every}
    predictor = {"name": moving, **options}
    return HybridConfig(**{**rest, "predictor": {"name": name, "of": predictor} if name == "reversed" else predictor})


def as_today(data: Any, *, key: str = "") -> Any:
    """Translate recorded names to today's in nested data; ``key`` is the recorded name of the entry that holds it."""
    return _translated(data, key, back=False)


def as_recorded(data: Any, *, key: str = "") -> Any:
    """Translate today's names to recorded ones."""
    return _translated(data, key, back=True)


def result_as_recorded(written: Mapping[str, Any]) -> Any:
    """``result.json`` in the recorded form, which contained values that are derived today."""
    result = RunResult.from_dict(written)
    return as_recorded(
        {
            **written,
            **{name: getattr(result, name) for name in DERIVED},
            "tokens": {"read": result.tokens_read, **written["tokens"]},
            "statistics": {**written["statistics"], **dict.fromkeys(DERIVED_STATISTICS)},
        }
    )


def text_as_recorded(text: str) -> str:
    for today, recorded in TEXTS:
        text = re.sub(today, recorded, text)
    return text


def _translated(data: Any, key: str, *, back: bool) -> Any:
    if isinstance(data, Mapping):
        names = _table(_KEYS.get(key, FIELDS), back)
        found = {}
        for name, value in data.items():
            other = names.get(name, name)
            found[other] = _translated(value, other if back else name, back=back)
        return found
    if isinstance(data, list | tuple):
        return [_translated(value, key, back=back) for value in data]
    return _table(_VALUES.get(key, {}), back).get(data, data) if isinstance(data, str) else data


def _table(names: Mapping[str, str], back: bool) -> Mapping[str, str]:
    return {today: recorded for recorded, today in names.items()} if back else names
