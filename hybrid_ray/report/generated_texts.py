"""What the models of a study write, the baseline's text beside the best trial's. An impression, no measure."""

from dataclasses import dataclass

from hybrid_ray.report.load import Study

__all__ = ["Sample", "samples"]

LONGEST = 400  # characters shown
NOT_SHOWN = "\ufffd"  # for what has no picture: a model of bytes may write any of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One model's text, as it may be shown. Not escaped: that is up to the page."""

    name: str
    text: str

    @property
    def indented(self) -> str:
        """As a block of Markdown that shows every character as it is."""
        return "\n".join(f"    {line}" for line in self.text.split("\n"))


def samples(study: Study) -> list[Sample]:
    """Of the baseline and of the best trial, where they left one. Empty for a study of pictures or of no text."""
    best = study.best
    runs: dict[str, int | str] = {"baseline": "baseline"}
    if best is not None:
        runs[f"trial {best['number']:.0f} (best)"] = int(best["number"])
    results = {name: study.result(run) for name, run in runs.items()}
    return [
        Sample(name=name, text=_shown(result.sample)) for name, result in results.items() if result and result.sample
    ]


def _shown(text: str) -> str:
    lines = text.replace("\r\n", "\n").replace("\t", "    ")
    plain = "".join(letter if letter.isprintable() or letter == "\n" else NOT_SHOWN for letter in lines)
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]} ..."
