"""What is wrong with a study, gathered so that all of it is said at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fourfold.errors import ConfigError, FourfoldError
from fourfold.study.spec import Study


def problems_of(check: Callable[[], object]) -> list[str]:
    """What ``check`` refuses, if anything."""
    try:
        check()
    except FourfoldError as error:
        return [str(error)]
    return []


def refuse(study: Study, problems: Sequence[str], by_cell: Sequence[tuple[str, str]] = ()) -> None:
    """Raise :class:`ConfigError` with every problem on a line of its own, if there is any; cells with the same problem
    share one.
    """
    cells: dict[str, list[str]] = {}
    for name, text in by_cell:
        cells.setdefault(text, []).append(name)
    lines = [*problems, *(f"{', '.join(names)}: {text}" for text, names in cells.items())]
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        raise ConfigError(f"study {study.name}: {len(lines)} wrong, nothing was run:{listed}")
