"""What runs attempts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from . import adapter_pb2 as pb
from .pcm_attempts import Attempt


@dataclass
class Config:
    """What the site says."""

    name: str
    instance: str
    settings: dict[str, str]
    secrets: dict[str, str]


@dataclass
class State:
    """What a word of the back end means.

    state is pending, running, suspended or ended; outcome of ended is ok, failed,
    time_limit, memory, output, stopped or lost.
    """

    state: str = "running"
    outcome: str = ""
    reason: str = ""


@dataclass
class Seen:
    """How an attempt stands."""

    state: State = field(default_factory=State)  # as a rule from the table of states
    word: str = ""  # the back end's own
    job: Any = None  # what the back end said, for Attempt.note["job"]
    gone: bool = False  # the back end has it no more
    code: int | None = None  # exit code, when ended and known
    seconds: float = 0  # that it ran
    cpu: float = 0  # seconds
    memory: int = 0  # bytes at most


class Backend(ABC):
    """Its methods are called at the same time, but one after the other for one attempt.

    Errors are CallErrors: see adapter.proto for their codes.
    """

    @abstractmethod
    def configure(self, c: Config) -> None:
        """Gets settings and secrets. It may come again."""

    @abstractmethod
    def pools(self, ours: dict[str, int]) -> list[pb.Pool]:
        """Tells what there is. ours counts our attempts by pool."""

    @abstractmethod
    def find(self, a: Attempt) -> str:
        """Looks for an attempt that was perhaps begun: its name at the back end, or ""."""

    @abstractmethod
    def start(self, a: Attempt) -> str:
        """Begins an attempt and gives its name at the back end."""

    @abstractmethod
    def poll(self, attempts: list[Attempt]) -> dict[str, Seen]:
        """Tells by key how attempts stand. What is left out is not known at the moment."""

    @abstractmethod
    def logs(self, a: Attempt, ended: bool) -> None:
        """Adds what is new to the streams: see Attempt.write. ended: no more will come."""

    @abstractmethod
    def stop(self, a: Attempt, force: bool) -> None:
        """Asks it to end, or with force ends it."""

    @abstractmethod
    def outputs(self, a: Attempt) -> None:
        """Brings the declared outputs into a.request.work."""

    @abstractmethod
    def remove(self, a: Attempt) -> None:
        """Deletes what is left of it at the back end."""

    def judge(self, a: Attempt, s: Seen) -> Seen:
        """How a task ended, when its output was read."""
        return s

    def suspends(self) -> bool:
        """Whether suspend and resume work."""
        return False

    def suspend(self, a: Attempt) -> None:
        """Halts what runs."""

    def resume(self, a: Attempt) -> None:
        """Lets it go on."""
