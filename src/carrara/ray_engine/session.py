"""A session of Ray (Moritz et al. 2018, "Ray: A Distributed Framework for Emerging AI Applications"), started here
or joined.

Without RAY_ADDRESS it is started on this machine and ends with the command: it listens on loopback alone, wants a
token that only its own processes have, opens no page and tells nobody. With RAY_ADDRESS the cluster there is joined.

Indexes built on Ray: lance-ray has workers build segments, each of some fragments, and publishes them as one.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import secrets
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from carrara.dataset.store import lock, release
from carrara.errors import UserError, one_line

if TYPE_CHECKING:
    import lance
    from ray.actor import ActorHandle

    from carrara.dataset.store import Store


ADDRESS = "RAY_ADDRESS"
TOGETHER, AT_ALL = 60.0, 300.0  # seconds that workers are waited for: that all come, and that any does
_START = 120.0  # seconds in which each of Ray's own processes may start on a busy machine
_FOLDER, _NEW = "carrara-ray-", 60.0  # in the temporary folder; seconds in which its maker has it locked
_MEMORY = 512 * 2**20  # of the store that is shared by the processes of one machine
# Ray's listeners bind to loopback where it is told that it has no cluster to be reached by.
_ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_raylet_start_wait_time_s": f"{_START:.0f}",
    "RAY_gcs_server_port_wait_time_s": f"{_START:.0f}",
}
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def check_installed() -> None:
    """UserError where Ray or lance-ray is not there."""
    missing = [name for name in ("ray", "lance_ray") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--engine ray needs {' and '.join(missing).replace('_', '-')}; install it: pip install 'carrara[scale]'"
        )


class Team(NamedTuple):
    """How many workers there are to be, and of what each gets how much."""

    workers: int
    processors: int
    gpus: float


class _Kept:
    """A connection that several uses share, and the first of them makes."""

    def __init__(self) -> None:
        self.open = ExitStack()
        self.team: Team | None = None


_kept: list[_Kept] = []


@contextmanager
def keeping() -> Iterator[None]:
    """What `cluster` starts within stays until the end of this."""
    kept = _Kept()
    _kept.append(kept)
    try:
        with kept.open:
            yield
    finally:
        _kept.remove(kept)


@contextmanager
def cluster(workers: int | None = None) -> Iterator[Team]:
    """Ray, and as many workers as asked, or as it has processors.

    Where this process is connected already, that connection is used and kept. UserError where the cluster cannot
    be reached.
    """
    if not _kept:
        with _connected(workers) as team:
            yield team
        return
    if _kept[-1].team is None:
        _kept[-1].team = _kept[-1].open.enter_context(_connected(workers))
    yield _kept[-1].team


@contextmanager
def _connected(workers: int | None) -> Iterator[Team]:
    check_installed()
    with _environment(_QUIET):
        import ray

        if ray.is_initialized():
            yield _joining(workers)
        elif (address := os.environ.get(ADDRESS, "")) not in (
            "",
            "local",
        ):  # that would be one of Ray's own ways
            with _joined(address):
                yield _joining(workers)
        else:
            here, wanted = cores(), workers or cores()
            with _started(max(here, wanted)):
                yield Team(wanted, max(1, here // wanted), gpus_each(wanted, _gpus()))


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _joining(workers: int | None) -> Team:
    """No more than there are processors: a further one would wait for ever."""
    import ray

    there = max(1, int(ray.cluster_resources().get("CPU", 1)))
    wanted = min(workers or there, there)
    return Team(wanted, 1, gpus_each(wanted, _gpus()))


def _gpus() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def gpus_each(workers: int, gpus: int) -> float:
    """The share of a GPU that lets all of them find a place, in Ray's steps of a ten-thousandth."""
    return math.floor(10_000 / math.ceil(workers / gpus)) / 10_000 if gpus else 0.0


def arrived(
    hired: Sequence[ActorHandle[Any]],
    *,
    needed: bool = True,
    together: float = TOGETHER,
    at_all: float = AT_ALL,
) -> list[ActorHandle[Any]]:
    """Those of them that Ray finds a place for in so many seconds; the others are dismissed.

    Where one is ``needed`` and none comes, the first is waited for longer. UserError where there is no place for any.
    """
    import ray

    waiting: dict[Any, ActorHandle[Any]] = {worker.__ray_ready__.remote(): worker for worker in hired}
    there, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=together)
    if needed and not there:
        there, _ = ray.wait(list(waiting), num_returns=1, timeout=at_all - together)
    found = [waiting.pop(ref) for ref in there]
    for worker in waiting.values():
        dismiss(worker)
    if needed and not found:
        raise UserError(
            f"Ray found no place for a worker in {at_all:.0f} s: others hold its processors (or GPUs); wait for "
            "them, or ask for fewer --workers"
        )
    return found


def place_of(store: Store) -> Path:
    """Where a data set lies, as a worker finds it, whatever folder that was started in."""
    return store.path.absolute() if store.path == store.work else store.path


def is_lost(error: BaseException) -> bool:
    """Whether a worker died, by whatever hand, rather than failed at its work."""
    from ray.exceptions import RayActorError

    return isinstance(error, RayActorError)


def cause(error: BaseException) -> BaseException:
    """What a worker raised, without what Ray put around it."""
    found = getattr(error, "cause", None)
    return found if isinstance(found, BaseException) else error


def dismiss(worker: ActorHandle[object]) -> None:
    """Ends a worker; nothing is said where it is gone already."""
    import ray

    ray.kill(worker, no_restart=True)


@contextmanager
def _started(processors: int) -> Iterator[None]:
    import ray

    folder = Path(tempfile.mkdtemp(prefix=_FOLDER))  # logs and sockets
    held = lock(folder)
    try:
        if held is not None:  # there are locks here
            sweep(folder.parent)
        with _alone():
            _start(processors, str(folder))
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        for _ in range(50):  # what of Ray is ending still writes
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)
        release(held)


def sweep(place: Path) -> None:
    """Removes the folders that killed commands left: nobody holds them."""
    for folder in place.glob(f"{_FOLDER}*"):
        with suppress(OSError, UserError):
            if time.time() - folder.stat().st_mtime > _NEW:
                held = lock(folder)
                shutil.rmtree(folder, ignore_errors=True)
                release(held)


def _start(processors: int, folder: str) -> None:
    import ray

    try:
        with _forking(), _patient():
            ray.init(
                address="local",
                num_cpus=processors,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=_MEMORY,
                _temp_dir=folder,
            )
    except Exception as error:  # Ray says so by a plain one
        ray.shutdown()
        raise UserError(f"Ray cannot be started on this machine: {one_line(error)}") from None


@contextmanager
def _patient() -> Iterator[None]:
    """Ray gives up a node that is not there after 30 seconds, which no setting changes; here it has longer."""
    from ray._private import services

    ask, until = services.get_node, time.monotonic() + _START

    def asked(*which: object) -> object:
        while True:
            try:
                return ask(*which)
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    services.get_node = asked
    try:
        yield
    finally:
        services.get_node = ask


@contextmanager
def _joined(address: str) -> Iterator[None]:
    import ray

    try:
        with _forking():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"no Ray can be joined at {ADDRESS}={address}: {one_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _forking() -> Iterator[None]:
    """Lance warns of forks; Ray's are other programs at once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        yield


@contextmanager
def _alone() -> Iterator[None]:
    """On loopback and with a token, also where Ray was imported before and has read its environment."""
    from ray._private import ray_constants

    raylet: Any = importlib.import_module("ray._raylet")  # compiled, its types are not told
    before = ray_constants.ENABLE_RAY_CLUSTER
    with _environment({**_ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        ray_constants.ENABLE_RAY_CLUSTER = False
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables that Ray's processes are to see, and that are as before afterwards."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def build_on_ray(
    workers: int | None,
    table: lance.LanceDataset,
    column: str,
    kind: str,
    name: str,
    settings: dict[str, Any],
) -> None:
    """`search.indexing.build` by so many workers, or one for each processor."""
    with cluster(workers) as team:
        import lance_ray

        logging.getLogger("lance_ray").setLevel(logging.WARNING)
        if kind == "INVERTED":
            lance_ray.create_scalar_index(
                table, column=column, index_type=kind, name=name, num_workers=team.workers, **settings
            )
        else:
            lance_ray.create_index(table, column, kind, name, num_workers=team.workers, **settings)
