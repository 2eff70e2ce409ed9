"""torchrun whose exit code says why: what the launchers in ``tools/`` start ranks with.

    python -m varcon_plugin.commands.ranks [flags of torchrun] SCRIPT [arguments]

SIGTERM and SIGUSR1 go to every rank, which saves at the end of its step; the exit code
then is 75, for a script to try again. Otherwise it is the code of the rank that failed
first. Ranks end with this process, also when it is killed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from varcon_plugin.checkpoints.ownership import LAUNCHER
from varcon_plugin.checkpoints.stopping import REQUEUE, SIGNALS

__all__ = ["main"]

OTHERS = "SIGINT,SIGHUP,SIGQUIT"  # torchrun ends the ranks on these
SAID_ALREADY = {REQUEUE, 1}  # 1: the rank has printed what is wrong


def main(argv: list[str] | None = None) -> None:
    """Run the ranks of this node."""
    arguments = sys.argv[1:] if argv is None else argv
    args = parse_args(arguments)  # type: ignore[no-untyped-call]
    args.signals_to_handle = OTHERS
    os.environ[LAUNCHER] = str(os.getpid())
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for number in SIGNALS:
        signal.signal(number, pass_on)
    try:
        run(args)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        code = first.exitcode if first.exitcode > 0 else 128 - first.exitcode
        if code not in SAID_ALREADY:
            print(f"rank {rank} ended with exit code {first.exitcode}", file=sys.stderr)
        sys.exit(code)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def pass_on(number: int, frame: FrameType | None) -> None:
    """Send a signal to the ranks, but not to their data workers."""
    for child in children():
        with suppress(ProcessLookupError):
            os.kill(child, number)


def children() -> list[int]:
    """Processes that this one has started, on Linux."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = status.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.append(int(status.parent.name))
    return found


if __name__ == "__main__":
    main()
