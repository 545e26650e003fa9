"""The whole error tree, its exit codes and its codes on the wire.

    ShardnetError                        exit 1
      UsageError                         exit 2   wrong flags, wrong settings, a path that is not there
      SettingsError                      exit 2
      RefusedError                       exit 3   a model family or a file refused by name
        GgufError                                 not a GGUF, truncated, inconsistent
        CheckpointError                           SafeTensors, index and config.json that are damaged, incomplete or disagree
        FamilyRefused                             the family cannot be split exactly
        ManifestError                             malformed, tampered with, or of another model
      ParityError                        exit 4   the chain of shards differs from the unsplit model
      UnreachableError                   exit 5   swarm, coordinator or peer cannot be reached
        PeerRefused                               TLS, membership or protocol version
        PeerLost                                  the connection broke
      NoRoomError                        exit 6   not enough memory or disk
      ProtocolError                      exit 1
        LocalProtocolError                        our bug
        RemoteProtocolError                       theirs
      ShardError                         exit 1
        ShardNotFound                             no file here and nowhere to get it
        ShardCorrupt                              bytes do not match the manifest
      EngineError                        exit 1   llama.cpp said no
        EngineCrashed                             llama.cpp took its process with it; the step may be repeated
        SequenceGap                               a step starts beyond what the stage has seen
        ContextExceeded              exit 2       the sequence outgrew its context: a shorter prompt is needed
      PlacementError                     exit 1   nobody to run some layers
      DeadlineExceeded                   exit 1
      Busy                               exit 1   try again later

`shardnet doctor` ends with 7 if it found something that must be mended.

Every error writes one clear sentence. Facts that programs need are in `facts` (JSON scalars only).
"""

from __future__ import annotations

from typing import ClassVar

EXIT_TO_MEND = 7
Fact = str | int | float | bool | None
LOADING = "loading_"
"""How the facts begin that say how far a model is that is being loaded: share, done_bytes, total_bytes, bytes_per_s, seconds_left."""


class ShardnetError(Exception):
    """Base of every error that shardnet raises on purpose. `str(error)` is one sentence for a person."""

    code: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **facts: Fact) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts


class UsageError(ShardnetError):
    """The command line asks for something that makes no sense."""

    code = "USAGE"
    exit_code = 2


class SettingsError(ShardnetError):
    """A settings file, an environment variable or a flag holds a value that cannot be used."""

    code = "SETTINGS"
    exit_code = 2


class RefusedError(ShardnetError):
    """A model family or a file that shardnet will not work with."""

    code = "REFUSED"
    exit_code = 3


class GgufError(RefusedError):
    """Bytes that are not a whole, consistent GGUF."""

    code = "BAD_GGUF"


class CheckpointError(RefusedError):
    """A checkpoint whose SafeTensors files, index and config.json are damaged, incomplete, or disagree; or that holds what is not taken."""

    code = "BAD_CHECKPOINT"


class FamilyRefused(RefusedError):
    """A model family whose layer ranges are not known to be exact."""

    code = "FAMILY_REFUSED"


class ManifestError(RefusedError):
    """A manifest that is malformed, altered, unsigned where a signature is needed, or of another model."""

    code = "BAD_MANIFEST"


class ParityError(ShardnetError):
    """The chain of shards gives other numbers than the unsplit model."""

    code = "PARITY"
    exit_code = 4


class UnreachableError(ShardnetError):
    """Swarm, coordinator or peer cannot be reached."""

    code = "UNREACHABLE"
    exit_code = 5


class PeerRefused(UnreachableError):
    """The other end is not a member of this swarm, was revoked, or speaks another protocol version."""

    code = "PEER_REFUSED"


class PeerLost(UnreachableError):
    """The connection broke, or heartbeats stopped."""

    code = "PEER_LOST"


class NoRoomError(ShardnetError):
    """Not enough memory or disk; `facts` carry `needed_bytes` and `free_bytes`."""

    code = "NO_ROOM"
    exit_code = 6


class ProtocolError(ShardnetError):
    """A rule of the wire protocol was broken."""

    code = "PROTOCOL"


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol: a bug of ours."""

    code = "PROTOCOL_LOCAL"


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol."""

    code = "PROTOCOL_REMOTE"


class ShardError(ShardnetError):
    """Something is wrong with one shard."""

    code = "SHARD"


class ShardNotFound(ShardError):
    """The shard is not here, and there is nowhere to get it from."""

    code = "SHARD_NOT_FOUND"


class ShardCorrupt(ShardError):
    """The shard's bytes are not those that the manifest promises."""

    code = "SHARD_CORRUPT"


class EngineError(ShardnetError):
    """llama.cpp refused a load or a step."""

    code = "ENGINE"


class EngineCrashed(EngineError):
    """The engine process died under this task. The step may be repeated: the engine comes back with its shards."""

    code = "ENGINE_CRASHED"


class SequenceGap(EngineError):
    """A step starts at a position that the stage has not reached: replay from `facts["have"]`."""

    code = "SEQUENCE_GAP"


class ContextExceeded(EngineError):
    """The sequence does not fit into the context it was given."""

    code = "CONTEXT_EXCEEDED"
    exit_code: ClassVar[int] = 2


class PlacementError(ShardnetError):
    """No assignment of shards to nodes covers every layer."""

    code = "NO_PLACEMENT"


class DeadlineExceeded(ShardnetError):
    """The command's deadline passed before its final answer."""

    code = "DEADLINE"


class Busy(ShardnetError):
    """All places are taken; `facts["retry_after_s"]` says when to try again."""

    code = "BUSY"


def printable(text: str, *, keep: str = "") -> str:
    """Returns: a text of somebody else's, in which control characters but those to keep are escapes: nothing in it steers a terminal."""
    return "".join(char if char.isprintable() or char in keep else ascii(char)[1:-1] for char in text)


def _tree(root: type[ShardnetError]) -> dict[str, type[ShardnetError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


_BY_CODE = _tree(ShardnetError)


def error_from_wire(code: str, message: str, facts: dict[str, Fact] | None = None) -> ShardnetError:
    """The inverse of `(error.code, error.message, error.facts)`. An unknown code becomes the base class."""
    kind = _BY_CODE.get(code, ShardnetError)
    error = kind.__new__(kind)
    ShardnetError.__init__(error, message, **(facts or {}))
    return error
