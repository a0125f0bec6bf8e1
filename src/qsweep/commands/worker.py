"""``qsweep worker``: run jobs of a sweep that wait in a queue, on this machine.

Several may work on one sweep, on as many machines as see the queue's database (docs/cluster.md).
Ctrl-C or SIGTERM gives the jobs under way back to the queue.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qsweep.base.console import say
from qsweep.base.errors import ConfigError
from qsweep.base.store import ROOT_VARIABLE, Store
from qsweep.commands.entry import Parser, absolute, command, command_parser
from qsweep.commands.queue_option import add_sweep_and_queue
from qsweep.launch.job import Job
from qsweep.launch.local import PRELOAD


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Work; 0: the queue is finished, or there was nothing to do for ``--idle`` seconds."""
    return work(parser().parse_args(arguments))


def work(options: argparse.Namespace, preload: Sequence[str] = PRELOAD) -> int:
    """Do what the command's options say; ``preload`` is imported once for all jobs."""
    _check(options)
    from qsweep.base.cleanup import remove_scratch
    from qsweep.base.memory import available_bytes
    from qsweep.launch.local.slots import make_slots
    from qsweep.launch.queue.claims import Claims
    from qsweep.launch.queue.database import Database, patiently
    from qsweep.launch.queue.hints import queue_url
    from qsweep.launch.queue.machines import host_name, own_name
    from qsweep.launch.queue.worker import Worker

    url = queue_url(options.queue, options.outputs)
    slots = make_slots(options.jobs, [options.device])
    if options.device == "cuda" and not slots.gpus:
        raise ConfigError("--device=cuda: no CUDA GPU is visible; use --device=cpu")
    if options.store is not None:
        os.environ[ROOT_VARIABLE] = str(options.store)
    remove_scratch()  # of workers that were killed here: no sweep may ever be started on this machine
    database = patiently(lambda: Database(url, "--queue"), options.patience, say=say)
    claims = Claims(database, options.sweep, own_name(), _require_shared_store)
    patiently(
        lambda: claims.enlist(host_name(), slots.count, len(slots.gpus), available_bytes()),
        options.patience,
        say=say,
    )
    with Worker(
        claims,
        slots,
        own_logs=options.store is not None,
        idle_s=options.idle,
        most=options.take,
        patience_s=options.patience,
        say=say,
        preload=preload,
    ) as worker:
        say(worker.run())
    return 0


def parser() -> Parser:
    """Its options."""
    parser = command_parser("worker", __doc__)
    add_sweep_and_queue(parser)
    parser.add_argument(
        "--jobs", type=_jobs, default="auto", metavar="N",
        help="how many at once; default: one per GPU, one on the CPU",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )
    parser.add_argument(
        "--store",
        type=absolute,
        metavar="DIR",
        help="a store of this machine's own; the sweep needs store.remote",
    )
    parser.add_argument(
        "--take", type=int, metavar="N", help="end after so many jobs; default: none is too many"
    )
    parser.add_argument(
        "--idle", type=float, metavar="SECONDS",
        help="end when there was nothing to do for so long; default: when the queue is finished",
    )  # fmt: skip
    parser.add_argument(
        "--patience", type=float, default=600.0, metavar="SECONDS",
        help="how long the database may be away; default: 600",
    )  # fmt: skip
    return parser


def _jobs(text: str) -> int | str:
    if text != "auto" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto")
    return text if text == "auto" else int(text)


def _require_shared_store(job: Job) -> None:
    """Refuse a job whose results would lie where the sweep never finds them. Raises ConfigError."""
    if (address := job.payload.get("store")) is None:
        return
    store, there = Store.at(address), Path(address["root"])
    # The outputs' folder: the head has made it, and of the store in it perhaps nothing yet.
    if store.root == there and address["remote"] is None and not there.parent.is_dir():
        raise ConfigError(
            f"the sweep's store, {there}, is not on this machine; give the sweep store.remote=URL "
            "and this worker --store=DIR, or mount the folder"
        )


def _check(options: argparse.Namespace) -> None:
    if options.take is not None and options.take < 1:
        raise ConfigError(f"--take={options.take}: a number of jobs, from 1")
    for name in ("idle", "patience"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f"--{name}={value:g}: seconds, from 0")


if __name__ == "__main__":
    sys.exit(main())
