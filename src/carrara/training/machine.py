"""What this machine has left: memory for training, disk where files go."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

_LOOK, _NOTICED = 3.0, 0.15  # seconds between looks; share of the time spent waiting that is worth a word


@dataclass(frozen=True)
class Memory:
    """Bytes that are free, of how many, and of what kind: "RAM" or a GPU's."""

    free: int
    total: int
    kind: str


def memory(device: torch.device) -> Memory:
    """The memory that training on a device would use."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(free, total, "GPU memory")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _meminfo("MemAvailable") or total
    limit, used = _container()
    if limit is not None:
        total, free = min(total, limit), min(free, limit - used)
    return Memory(free, total, "RAM")


def disk_free(path: Path) -> int:
    """Bytes free where ``path`` is, or will be."""
    place = path.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def resident(word: str = "VmRSS") -> int | None:
    """Bytes of this process in RAM now, or at most so far with "VmHWM"; None where the system does not tell."""
    return _field(Path("/proc/self/status"), word)


def core_time() -> tuple[float, float] | None:
    """Seconds that this process's threads ran, and that they were ready but had no core.

    None where the system does not tell.
    """
    ran, waited = 0, 0
    try:
        for thread in Path("/proc/self/task").iterdir():
            numbers = (thread / "schedstat").read_text().split()
            ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    except (OSError, ValueError, IndexError):
        return None
    return (ran / 1e9, waited / 1e9) if ran else None


def busy_time() -> float:
    """Seconds that all cores together were busy, of the whole machine; 0 where the system does not tell."""
    try:
        user, nice, system, _, _, *rest = map(
            int, Path("/proc/stat").read_text().splitlines()[0].split()[1:8]
        )
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


class Sharing:
    """Whether other programs want the cores that this process computes on, looked at every few seconds."""

    def __init__(self) -> None:
        self._before, self._at, self._words = core_time(), time.monotonic(), ""
        self._busy = busy_time()

    def words(self) -> str:
        """Something for a line of progress, or ""."""
        if time.monotonic() - self._at > _LOOK and (now := core_time()) and self._before:
            ran, waited = (max(0.0, new - old) for new, old in zip(now, self._before, strict=True))
            share, others = waited / max(1e-9, ran + waited), busy_time() - self._busy - ran
            shared = share > _NOTICED and others > _NOTICED * (time.monotonic() - self._at)
            self._words = f" · shared machine: waits {share:.0%} of the time" if shared else ""
            self._before, self._at, self._busy = now, time.monotonic(), busy_time()
        return self._words


def _meminfo(word: str) -> int | None:
    return _field(Path("/proc/meminfo"), word)


def _field(file: Path, word: str) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(word + ":")), None)
    return int(found.split()[1]) * 1024 if found else None


def _container() -> tuple[int | None, int]:
    """The limit of a container and what it uses of it, without files that could be dropped; None without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        held = (folder / "memory.stat").read_text().splitlines()
        files = next((int(line.split()[1]) for line in held if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError):
        return None, 0
    return limit, max(0, used - files)
