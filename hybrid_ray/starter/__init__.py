"""``hybrid-ray init``: a commented job file, and a task file for a model of one's own, that run as they are."""

from pathlib import Path

from hybrid_ray.errors import ConfigError

__all__ = ["write_starter"]

_HERE = Path(__file__).parent


def write_starter(path: Path, *, task: bool) -> list[Path]:
    """Write a job file, and with ``task`` the file of a task next to it, which the job names. Returns what was written.

    Raises:
        ConfigError: the job's name is no module name where a task needs one, the folder is not there, or a file is
            there already. Nothing was written.
    """
    name = path.stem if task else "my_job"
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path} is no name of a job file: it must end in .yaml")
    if task and not name.isidentifier():
        raise ConfigError(f"{path} can't share its name with a Python module: use letters, digits and underscores")
    files = {path: _template("task_job.yaml" if task else "job.yaml").replace("my_job.yaml", path.name)}
    if task:
        module = f"{name}_task"
        files[path] = files[path].replace("my_task", module)
        files[path.with_name(f"{module}.py")] = _template("my_task.py")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder: make it first")
    if there := [str(file) for file in files if file.exists()]:
        raise ConfigError(f"{', '.join(there)} exists and is never overwritten: give another name")
    for file, text in files.items():
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    return list(files)


def _template(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
