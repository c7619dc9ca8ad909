"""Check that the package behaves as before: record and compare exact traces of training and of every command.

    python tests/golden/guard.py record            write tests/golden/traces/
    python tests/golden/guard.py compare           compute them again and print each difference; exit code 1 on any
    python tests/golden/guard.py compare --fast    only the trainer and the commands that train nothing

Use it for a change that moves code and must do nothing else: record from the sources before it, compare after it. The
losses are equal to the last bit only on the machine and torch build that recorded them; elsewhere `compare` says so
(exit code 2). The traces of the trainer alone are kept in the repository, because ``test_guard.py`` compares them on
any machine, to the digits on which processors agree. Record those again only for an intended change, in a commit that
says why.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests" / "golden"), str(REPOSITORY)]

__all__ = ["TRACES", "differences", "machine", "main"]

TRACES = Path(__file__).parent / "traces"
OTHER_MACHINE = 2
SHOWN = 4  # differences printed per trace


def _trainer() -> dict[str, Any]:
    from trainer_traces import trainer_traces

    return trainer_traces()


def _ranks() -> dict[str, Any]:
    from trainer_traces import rank_traces

    return rank_traces()


def _commands() -> dict[str, Any]:
    from commands import command_traces

    return command_traces()


def _runs() -> dict[str, Any]:
    from run_traces import run_traces

    return run_traces()


def _study() -> dict[str, Any]:
    from study_traces import study_traces

    return study_traces()


FAST: Mapping[str, Callable[[], dict[str, Any]]] = {"trainer": _trainer, "commands": _commands}
ALL: Mapping[str, Callable[[], dict[str, Any]]] = {**FAST, "ranks": _ranks, "runs": _runs, "study": _study}


def machine() -> dict[str, str]:
    """The versions and hardware on which the last bit of a loss depends."""
    import torch

    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def differences(recorded: Any, found: Any, place: str = "") -> Iterator[str]:
    """One line for each value that differs from the recorded one."""
    if isinstance(recorded, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*recorded, *found]):
            where = f"{place} > {key}" if place else str(key)
            if key not in found or key not in recorded:
                yield f"{where}: {'is gone' if key in recorded else 'is new'}"
            else:
                yield from differences(recorded[key], found[key], where)
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for index, (before, now) in enumerate(zip(recorded, found, strict=True)):
            yield from differences(before, now, f"{place} [{index}]")
    elif recorded != found:
        yield f"{place}:\n    recorded {_shown(recorded)}\n    found    {_shown(found)}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("--fast", action="store_true", help="only the trainer and the commands that train nothing")
    parser.add_argument("--only", choices=list(ALL), help="one part")
    options = parser.parse_args(arguments)
    _check_sources()
    parts = {options.only: ALL[options.only]} if options.only else FAST if options.fast else ALL
    if options.what == "compare" and (reason := _not_comparable(parts)):
        print(reason)
        return OTHER_MACHINE
    different = [part for part, trace in parts.items() if not _done(part, trace, record=options.what == "record")]
    if different:
        print(f"Different from the record: {', '.join(different)}")
    return 1 if different else 0


def _check_sources() -> None:
    """Check that the imported package is the one of this repository, not an installed one."""
    import hybrid_ray

    if REPOSITORY not in Path(hybrid_ray.__file__).parents:
        raise SystemExit(f"hybrid_ray is imported from {hybrid_ray.__file__}, which is not in {REPOSITORY}")


def _done(part: str, trace: Callable[[], dict[str, Any]], *, record: bool) -> bool:
    """Record or compare one part; returns whether it equals the record."""
    began, file = time.monotonic(), TRACES / f"{part}.json"
    found = json.loads(json.dumps(trace()))
    lines: list[str] = []
    if record:
        TRACES.mkdir(exist_ok=True)
        file.write_text(json.dumps({"machine": machine(), "traces": found}, indent=1) + "\n", encoding="utf-8")
    else:
        lines = _compared(json.loads(file.read_text(encoding="utf-8"))["traces"], found)
    said = "recorded" if record else f"{len(lines)} of {len(found)} traces differ" if lines else "the same"
    print(f"{part}: {said} ({len(found)} traces, {time.monotonic() - began:.0f} s)", flush=True)
    print("".join(f"  {line}\n" for line in lines), end="", flush=True)
    return not lines


def _compared(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One text for each trace that differs, with its first differences."""
    texts = []
    for name in dict.fromkeys([*recorded, *found]):
        lines = list(differences({name: recorded.get(name)}, {name: found.get(name)}))
        if len(lines) > SHOWN:
            lines[SHOWN:] = [f"{name}: {len(lines) - SHOWN} more"]
        texts += ["\n  ".join(lines)] if lines else []
    return texts


def _not_comparable(parts: Mapping[str, Any]) -> str | None:
    """Why the records of these parts cannot be compared on this machine; None if they can."""
    for part in parts:
        file = TRACES / f"{part}.json"
        if not file.exists():
            return f"There is no {file.name}: record it first, from the sources that are to be kept"
        other = "; ".join(differences(json.loads(file.read_text(encoding="utf-8"))["machine"], machine()))
        if other:
            return f"{file.name} was recorded on another machine, so losses can't be equal to the last bit: {other}"
    return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 600 else f"{text[:600]}..."


if __name__ == "__main__":
    sys.exit(main())
