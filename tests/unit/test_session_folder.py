"""The temporary folder of a local Ray is removed, also after a driver that was killed; one in use is left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from hybrid_ray.ray_tune.session_folder import session_folder

HOLD = """
import sys, time
from hybrid_ray.ray_tune.session_folder import session_folder
with session_folder() as folder:
    folder.mkdir()
    print(folder.parent, flush=True)
    time.sleep(600)
"""


def driver() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_killed_driver_is_removed_and_that_of_a_living_one_kept() -> None:
    killed, its_folder = driver()
    alive, other_folder = driver()
    try:
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert its_folder.is_dir()
        with session_folder() as mine:
            assert not its_folder.exists()
            assert other_folder.is_dir()
            assert mine.parent.is_dir()
        assert not mine.parent.exists()
    finally:
        alive.kill()
        alive.communicate()
        with session_folder():
            pass
    assert not other_folder.exists()
