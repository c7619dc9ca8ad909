"""Find, import and check what a job names as ``package.module:Name``: its task, predictor, scheduler and so on.

To pass options, a job writes ``{name: package.module:Name, option: value, ...}`` (`NamedSetting`).

The module is searched for in the folder of the job file, then in the working directory, then among installed packages.
"""

import difflib
import importlib
import inspect
import json
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybrid_ray.errors import ConfigError, HybridRayError

__all__ = [
    "NamedSetting",
    "check_name",
    "did_you_mean",
    "is_module_name",
    "load_module",
    "load_named",
    "make_named",
    "module_folder",
    "name_and_options",
    "one_sentence",
    "option_problems",
    "source_of",
    "subclass_problems",
]


NamedSetting = str | Mapping[str, Any]
"""A name, or a mapping with ``name`` and the options."""


def is_module_name(text: str) -> bool:
    """Whether the text has the form ``package.module:Name``."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", text) is not None


def name_and_options(setting: NamedSetting) -> tuple[str, dict[str, Any]]:
    """Name and options of a setting. A mapping without a name gets the name ``""``, which `check_name` rejects."""
    if isinstance(setting, str):
        return setting, {}
    options = dict(setting)
    return str(options.pop("name", "")), options


def check_name(setting: NamedSetting, ours: Sequence[str] = ()) -> NamedSetting:
    """Check the form of a setting and return it. Nothing is imported.

    Args:
        ours: built-in names, which take no options.

    Raises:
        ValueError: the rule that it breaks, as the end of a sentence.
    """
    name, options = name_and_options(setting)
    if name in ours:
        if options:
            raise ValueError(f"{name} takes no options: leave {', '.join(options)} out")
        return setting
    if not is_module_name(name):
        known = f"one of {', '.join(ours)}, or " if ours else ""
        raise ValueError(f"must be {known}package.module:Name")
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("options must be plain values: text, numbers, lists, mappings") from None
    return setting


def make_named(
    setting: NamedSetting, kind: type, *, place: str, usual: Mapping[str, Any], folders: Sequence[str | Path]
) -> Any:
    """Make the object that a setting names, with its options.

    Args:
        kind: the class that the object must have.
        place: path of the setting, for messages: ``search.scheduler``.
        usual: default arguments. Used for parameters of these names that the job gives no option for.
        folders: as in `load_named`.

    Raises:
        ConfigError: the name does not exist, does not take these options, raises, or makes another kind of object.
    """
    name, options = name_and_options(setting)
    make = load_named(name, setting=place, folders=folders)
    if not callable(make):
        raise ConfigError(f"{place} is {name!r} but that is a {type(make).__name__}: name a class or a function")
    known = inspect.signature(make).parameters
    arguments = {**{key: value for key, value in usual.items() if key in known}, **options}
    if problems := [*option_problems(make, arguments, name=name, setting=place)]:
        raise ConfigError(problems)
    with one_sentence(f"{place}: making {name}"):
        made = make(**arguments)
    if not isinstance(made, kind):
        raise ConfigError(f"{place} is {name!r} but that makes a {type(made).__name__}: it must make a {kind.__name__}")
    return made


def load_named(name: str, *, setting: str, folders: Sequence[str | Path] = ()) -> Any:
    """Import the object that ``package.module:Name`` names.

    Args:
        setting: path of the setting, for messages: ``task.factory``.
        folders: searched for the module before the working directory. Without folders, a module that is already
            imported is used as it is.

    Raises:
        ConfigError: the text has another form, the module or the name does not exist, or the import fails.
    """
    if not is_module_name(name):
        raise ConfigError(f"{setting} is {name!r} but must look like package.module:Name")
    module, wanted = load_module(name, setting=setting, folders=folders), name.partition(":")[2]
    if not hasattr(module, wanted):
        mend = did_you_mean(wanted, vars(module)) or f"define it in {getattr(module, '__file__', module)}"
        raise ConfigError(f"{setting} is {name!r} but {module.__name__} has no {wanted}: {mend}")
    return getattr(module, wanted)


def load_module(name: str, *, setting: str, folders: Sequence[str | Path] = ()) -> Any:
    """The module of ``package.module:Name`` (or of ``package.module``). See `load_named`."""
    path = name.partition(":")[0]
    found = None
    if folders or path not in sys.modules:
        found = module_folder(name, [*folders, Path.cwd()])
    if found is not None:
        _import_from(path, found)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{setting} is {name!r} but importing {path} fails: {error}; install what it imports"
            ) from error
        raise ConfigError(
            f"{setting} is {name!r} but there is no module {path}: put {path.replace('.', '/')}.py next to the job "
            "file or in the working directory, or install it"
        ) from error
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"{setting} is {name!r} but importing {path} fails: {_described(error)}") from error


def module_folder(name: str, folders: Iterable[Path | str]) -> str | None:
    """The first folder that holds the module as a file or package; None if there is none."""
    path = Path(*name.partition(":")[0].split("."))
    for folder in map(Path, folders):
        if (folder / path.with_suffix(".py")).is_file() or (folder / path / "__init__.py").is_file():
            return str(folder.absolute())
    return None


def source_of(name: str, folders: Iterable[Path | str]) -> Path | None:
    """The file of a module in one of the folders; None for an installed module."""
    found = module_folder(name, folders)
    if found is None:
        return None
    path = Path(found, *name.partition(":")[0].split("."))
    file = path.with_suffix(".py")
    return file if file.is_file() else path / "__init__.py"


def subclass_problems(found: Any, base: type, *, name: str, setting: str, public: str) -> Iterator[str]:
    """A problem unless ``found`` is a subclass of ``base``. ``public`` is the name of ``base`` in messages."""
    if not isinstance(found, type) or not issubclass(found, base):
        yield (
            f"{setting} is {name!r} but that is not a subclass of {public}: write class "
            f"{name.partition(':')[2]}({public.rpartition('.')[2]})"
        )


def option_problems(called: Any, given: Iterable[str], *, name: str, setting: str) -> Iterator[str]:
    """Problems: options that a class or function does not take, and required options that are missing.

    Args:
        given: names of the options.
        setting: path of the options, for messages: ``task.options``.
    """
    parameters = list(inspect.signature(called).parameters.values())
    known = [parameter.name for parameter in parameters if parameter.kind not in _ANY_NUMBER]
    given = list(given)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        for option in [option for option in given if option not in known]:
            mend = did_you_mean(option, known) or f"it takes {', '.join(known) or 'none'}"
            yield f"{setting}.{option} is not an option of {name}: {mend}"
    for parameter in parameters:
        if parameter.name in known and parameter.default is parameter.empty and parameter.name not in given:
            yield f"{setting} has no {parameter.name} but {name} needs it: add it"


_ANY_NUMBER = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A suggestion, if one of the known words is similar."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else None


@contextmanager
def one_sentence(doing: str) -> Iterator[None]:
    """Turn any exception of a user's code into one `ConfigError` that says where it was raised. The cause is kept."""
    try:
        yield
    except HybridRayError:
        raise
    except Exception as error:
        raise ConfigError(f"{doing} fails: {_described(error)}") from error


def _described(error: Exception) -> str:
    """Type and text of an error, and the line of the user's code that raised it."""
    others = ("site-packages", "importlib", str(Path(__file__).parents[1]))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename for part in others)
    ]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def _import_from(name: str, folder: str) -> None:
    """Make the next import find the module in this folder, even if another module of that name was imported before."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    top = name.partition(".")[0]
    loaded = sys.modules.get(top)
    places = [getattr(loaded, "__file__", None), *getattr(loaded, "__path__", ())]
    if loaded is not None and not any(place and Path(place).is_relative_to(folder) for place in places):
        for other in [known for known in sys.modules if known == top or known.startswith(f"{top}.")]:
            del sys.modules[other]
        sys.path.remove(folder)
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
