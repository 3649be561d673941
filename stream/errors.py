"""The error tree: one class for each thing that the caller must do next.

Every package raises these and nothing else across its border; foreign exceptions (Kafka, OS, Avro) are translated where
they enter. Each error is one sentence for the operator, facts for the log, and a hint that says what to do.

    HostoffloadError
    ├── RetryError       back off and try the same position again, with a deadline
    ├── TooLargeError    a message is refused for its size; send it in smaller parts, never the same bytes again
    ├── ResyncError      history has a hole; bytes must be copied again
    ├── FencedError      a newer owner exists; stop, never claim again by yourself
    ├── IntegrityError   bytes are wrong; stop, keep everything, name the place
    ├── PeerError        the other side broke its protocol; close that connection only
    ├── RecoveryError    the request for a recovery point can't be met
    └── ConfigError      the operator's input is wrong; nothing was changed
"""

from __future__ import annotations


class HostoffloadError(Exception):
    """Carry one sentence, the facts behind it and a hint for the operator.

    `facts` are keyword arguments (volume, position, path, kafka_offset, expected, got, ...); they are printed by the log and by
    `str()`. `exit_code` is what the command line ends with: 1 the answer is no, 2 wrong use, 3 can't be done now.
    """

    exit_code = 3

    def __init__(self, sentence: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint
        self.facts = facts

    def __str__(self) -> str:
        told = " ".join(f"{key}={value}" for key, value in self.facts.items() if value is not None)
        return f"{self.sentence} [{told}]" if told else self.sentence

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.sentence, self.hint, self.facts)


class RetryError(HostoffloadError):
    """Back off and try the same position again; only this class may be caught in a loop, and with a deadline."""


class TooLargeError(HostoffloadError):
    """A message is larger than its topic takes: send the same records in smaller messages; the same bytes are refused again."""


class ResyncError(HostoffloadError):
    """History has a hole: the affected extents must be copied again before order can be promised."""


class FencedError(HostoffloadError):
    """A newer epoch or owner exists: stop, and never claim again without the operator's word."""


class IntegrityError(HostoffloadError):
    """Bytes are not what was written: stop, keep everything, never skip."""


class PeerError(HostoffloadError):
    """The other side broke its protocol: close that connection, harm nobody else."""


class RecoveryError(HostoffloadError):
    """The request for a recovery point can't be met; the facts say which points can."""


class ConfigError(HostoffloadError):
    """The operator's input is wrong; nothing was changed."""

    exit_code = 2


def _rebuild(kind: type[HostoffloadError], sentence: str, hint: str, facts: dict[str, object]) -> HostoffloadError:
    return kind(sentence, hint=hint, **facts)
