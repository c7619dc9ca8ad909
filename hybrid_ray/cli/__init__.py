"""The command line. ``hybrid-ray COMMAND --help`` lists the arguments of each.

Exit codes: 0 done; 1 the run failed; 2 a wrong job or argument (every problem is listed, nothing was started);
143 stopped by SIGTERM or Ctrl-C and can be resumed; 130 interrupted by Ctrl-C where there is nothing to resume.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from hybrid_ray.cli.cluster import with_command
from hybrid_ray.cli.exit_codes import FAILED, INTERRUPTED, WRONG
from hybrid_ray.cli.parser import build_parser
from hybrid_ray.errors import ConfigError, HybridRayError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: each run sets its own threads
    parser = build_parser()
    options = parser.parse_args(with_command(sys.argv[1:] if arguments is None else arguments))
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        return FAILED
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        print("Nothing was started.", file=sys.stderr)
        return WRONG
    except HybridRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
