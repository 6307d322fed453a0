"""Units of work on the machines of a Ray cluster, each worker an actor with its share of a machine.

The receipts on disk are the checkpoint: an actor writes its own part and gives back only what the receipt says, so all
machines must see the folder of shards under the same path. What an actor had begun when it was lost (with its machine,
by a kill, or because it hung) is simply done again by another. A driver that is killed takes its actors along, and the
next one finds the receipts.

Which cluster is Ray's own affair: that of `RAY_ADDRESS`, else the one that `ray start` has begun on this machine, else
one that is started here and ends with the command. One core of it is nobody's: a machine without one answers no more.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sra_data.engines.ray_crew import Crew
from sra_data.engines.work import Advance, Needs, Team, UnitType, Work, counted, refuse_no_workers
from sra_data.errors import ConfigError, one_line

SECONDS_TO_CONNECT = 10.0
SMALLEST_SHARE = 0.5  # of the cores that a worker needs, where there are fewer than would be right


def team(num_workers: int | None, needs: Needs) -> Team:
    """Actors, none of them here; see `Engine.team`."""
    return Team(is_here=False, threads=max(1, int(needs.cpus)))


def check(num_workers: int | None, needs: Needs) -> None:
    """See `Engine.check`; a cluster that nobody has started yet has no room that could be known."""
    refuse_no_workers(num_workers)
    _refuse_not_installed()
    if _address() is not None:
        with connected() as ray:
            _shares(ray, num_workers, needs)


def run_units(
    units: Iterable[UnitType],
    make_worker: Callable[[], Work],
    *,
    num_workers: int | None = None,
    advance: Advance | None = None,
    needs: Needs = Needs(),
) -> Iterator[tuple[UnitType, Any]]:
    """Do the units by actors, by default as many as the cluster has room for; see `Engine.run_units`."""
    refuse_no_workers(num_workers)
    waiting = list(units)
    if not waiting:
        return
    with connected() as ray:
        count, cpus = _shares(ray, num_workers, needs)
        crew = Crew(ray, make_worker, advance or (lambda amount: None), cpus=cpus, gpus=needs.gpus)
        try:
            yield from crew.do(waiting, count)
        finally:
            crew.dismiss()


# ------------------------------------------------------------------------------------------------------ the cluster


def _refuse_not_installed() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--engine ray: Ray is not installed; run `pip install 'sra-distill[ray]'`")


def _address() -> str | None:
    """Where RAY_ADDRESS says that there is a cluster; None where it says nothing, or that one shall be started here."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


@contextmanager
def connected() -> Iterator[Any]:
    """Ray, as its module, connected to a cluster; what was started here is ended here.

    Raises:
        ConfigError: If it is not installed, or there is no cluster where there should be one.
    """
    _refuse_not_installed()
    import ray

    if ray.is_initialized():
        yield ray
        return
    with _own_handlers():
        _connect(ray)
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any) -> None:
    address = _address()
    try:
        if address is not None:
            _knock(address)
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False if address is None else None)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = one_line(error, 200)
        if address is None:
            raise ConfigError(
                f"--engine ray: no cluster could be started or found on this machine ({reason}); if one has crashed, "
                "`ray stop` forgets it; RAY_ADDRESS=local starts one of its own"
            ) from None
        raise ConfigError(
            f"--engine ray: no cluster at {address}, which is RAY_ADDRESS ({reason}); begin one there with "
            "`ray start --head`, or unset RAY_ADDRESS to work on this machine"
        ) from None
    except SystemExit:  # Ray's answer to SIGTERM meanwhile
        raise KeyboardInterrupt from None


def _knock(address: str) -> None:
    """Find out whether anybody listens: Ray itself asks for a minute, and may end the process.

    Raises:
        OSError: Nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_CONNECT).close()


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep what a SIGTERM does: Ray takes it for itself, and the command would end without a word."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


# --------------------------------------------------------------------------------------------------------- its room


def _shares(ray: Any, num_workers: int | None, needs: Needs) -> tuple[int, float]:
    """How many workers there will be, and what each takes of the cores.

    With its cores whole where that is possible; with half of them where more workers are wanted than that, or there
    are more GPUs: a GPU that waits for a core is the greater waste.

    Raises:
        ConfigError: If there is not room for as many as are wanted, or for one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = (needs.cpus, needs.cpus * SMALLEST_SHARE)
    rooms = {cpus: _room(nodes, cpus, needs.gpus) for cpus in shares}
    most = max(rooms.values())
    if most < 1:
        raise ConfigError(
            f"--engine ray: the cluster has {_has(nodes)}, one core stays free, and a worker takes {_in_words(needs)}; "
            "add machines"
        )
    if num_workers is not None and num_workers > most:
        raise ConfigError(
            f"--workers {num_workers}: the cluster has room for {most}, of {_in_words(needs)} each ({_has(nodes)}, and "
            "one core stays free); ask for fewer, or add machines"
        )
    wanted = num_workers or (most if needs.gpus else rooms[needs.cpus] or most)
    return wanted, next(cpus for cpus in shares if rooms[cpus] >= wanted)


def _room(nodes: Sequence[dict[str, float]], cpus: float, gpus: int) -> int:
    """How many workers of such a share the machines bear, each on one of them; one core of all stays free."""
    shares = {name: share for name, share in (("CPU", cpus), ("GPU", gpus)) if share}
    bear = sum(int(min(node.get(name, 0.0) / share for name, share in shares.items())) for node in nodes)
    return max(0, min(bear, int((sum(node.get("CPU", 0.0) for node in nodes) - 1) / cpus)))


def _has(nodes: Sequence[dict[str, float]]) -> str:
    cores, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    return f"{counted(cores, 'core')} and {counted(gpus, 'GPU')} on {counted(len(nodes), 'machine')}"


def _in_words(needs: Needs) -> str:
    least = counted(needs.cpus * SMALLEST_SHARE, "core")
    return f"at least {least} and {counted(needs.gpus, 'GPU')}" if needs.gpus else f"at least {least}"
