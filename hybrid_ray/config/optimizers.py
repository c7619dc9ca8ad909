"""What optimizers are called in sentences and pictures."""

from collections.abc import Mapping

__all__ = ["optimizer_title"]

_TITLES: Mapping[str, str] = {
    "adamw": "AdamW",
    "adam": "Adam",
    "sgd": "SGD",
    "adamwspam": "AdamWSPAM",
    "adamwprune": "AdamWPrune",
    "adamw8bit": "8-bit AdamW",
    "ademamix": "AdEMAMix",
    "muon": "Muon",
    "muon_ademamix": "Muon with AdEMAMix's average",
    "schedule_free": "schedule-free AdamW",
}


def optimizer_title(name: str) -> str:
    """``AdEMAMix`` for ``ademamix``; of a user's ``package.module:Name`` the name of the class."""
    return _TITLES.get(name, name.rpartition(":")[2])
