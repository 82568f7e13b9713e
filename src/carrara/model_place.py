"""The place of a model that a user names: its folder, the run that made it, or the starter."""

from __future__ import annotations

from pathlib import Path

from carrara.errors import UserError

STARTER = "starter"


def model_in(path: Path) -> Path:
    """``path`` itself, the finished model inside a run, or for "starter" the model that comes with Carrara."""
    if path == Path(STARTER) and not path.exists():
        return Path(__file__).with_name(STARTER)
    if (path / "model" / "model.toml").is_file():
        return path / "model"
    if (path / "checkpoints").is_dir():
        raise UserError(f"the run in {path} has not finished: the same `carrara train` again continues it")
    return path
