"""The error tree: every failure a user can cause is one of these, with a one-line message that says what to do.

The command line returns 2 for every one of them (1 says that a thing was checked and found wrong, 130 that a run was
interrupted).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourfold.verify.report import VerifyReport


class FourfoldError(Exception):
    """Base of all expected failures. The message is complete in itself; no traceback is shown for it."""

    exit_code = 2


class ConfigError(FourfoldError, ValueError):
    """An option, a study file or a recipe that cannot be meant. Carries the key path in its message."""


class UnknownNameError(ConfigError):
    """A name nobody registered. The message lists the known ones."""

    def __init__(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(sorted(known)) or 'none'}")
        self.kind, self.name, self.known = kind, name, known

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.kind, self.name, self.known)


class PluginError(FourfoldError):
    """A plugin that fails to import, registers nonsense, or repeats a name."""


class MissingEnvironmentError(FourfoldError):
    """A toolchain that is not installed where it is needed. Names the command that installs it."""


class DeviceError(FourfoldError):
    """A device that was asked for and is not there, or has too little memory."""


class ModelError(FourfoldError, ValueError):
    """A model folder that is not what it should be: absent, truncated, not a Gemma 4 MoE."""


class CheckpointError(FourfoldError, ValueError):
    """A checkpoint or artifact whose files contradict themselves. Names the file and the tensor."""


class RuleError(FourfoldError):
    """Rules of the verifier that failed themselves: a fault of Fourfold's. Carries the report of all others."""

    def __init__(self, message: str, report: VerifyReport) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[type[RuleError], tuple[str, VerifyReport]]:
        return type(self), (str(self), self.report)


class CalibrationError(FourfoldError, ValueError):
    """Calibration data that cannot be used. Names the file and the line."""


class QuantizationError(FourfoldError):
    """A quantizer that cannot keep its promise, such as an expert that saw no token under rule ``error``."""


class EvaluationError(FourfoldError):
    """An evaluation that cannot go on or be compared: an endpoint, a data file, other prompts than the baseline's."""


class UnreachableDataError(EvaluationError):
    """Data that a benchmark would fetch, from where nothing answers now. What is wrong with them is not known."""


class OutputError(FourfoldError):
    """A destination that cannot be written: not empty, no space, no permission."""


class StageError(FourfoldError):
    """A stage's process that ended without a result. Carries the tail of its log."""


class ServerError(FourfoldError):
    """A server that does not start, does not answer, or answers what it should not. Carries the tail of its log."""


def first_line(error: BaseException | str | None) -> str:
    """Of an error or its message; its type's name, or words for it, where it has no message. Never empty."""
    return _lines(error)[0]


def last_line(error: BaseException | str | None) -> str:
    """As :func:`first_line`; the last line is where a traceback says what is the matter."""
    return _lines(error)[-1]


def _lines(error: BaseException | str | None) -> list[str]:
    silent = type(error).__name__ if isinstance(error, BaseException) else "no message"
    return (str("" if error is None else error).strip() or silent).splitlines()
