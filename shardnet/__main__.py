"""Console entry point. Every error of ours becomes one sentence and its exit code; a traceback means a bug of ours."""

from __future__ import annotations

import errno
import sys

if __name__ == "__main__" and not sys.flags.safe_path and not __file__.startswith(f"{sys.path[0]}/"):
    # `python -m` looks for modules where somebody happens to stand first: a json.py there would run in place of the real one.
    del sys.path[0]

from shardnet import standard_streams
from shardnet.errors import NoRoomError, SettingsError, ShardnetError, printable
from shardnet.files import DENIED, FULL
from shardnet.standard_streams import say

EXIT_INTERRUPTED = 130
LONGEST_SENTENCE = 10_000  # characters; paths have up to 4,096


def main() -> None:
    """Run the command line and exit with its code (docs/exit-codes.md)."""
    standard_streams.prepare()
    try:
        try:
            from shardnet.cli import app

            app()
        finally:
            standard_streams.flush()
    except ShardnetError as error:
        say(f"shardnet: {_for_a_terminal(str(error))}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("shardnet: interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as leaving:
        if leaving.code == EXIT_INTERRUPTED:  # Ctrl-C within a command, which typer makes into this
            say("shardnet: interrupted")
        raise
    except BrokenPipeError:
        standard_streams.give_up_output()
        sys.exit(0)
    except (OSError, ExceptionGroup) as error:
        told = _of_the_system(error)
        if told is None:
            raise
        standard_streams.give_up_output()
        say(f"shardnet: {_for_a_terminal(str(told))}")
        sys.exit(told.exit_code)


def _of_the_system(error: BaseException) -> ShardnetError | None:
    """Returns: what the operating system refused, and nobody nearer had words for, as people should read it; None for what may be a bug of ours."""
    if isinstance(error, ExceptionGroup):
        return _of_the_system(error.exceptions[0])
    if not isinstance(error, OSError):
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in FULL:
        return NoRoomError(
            f"a disk is full, that of standard output perhaps: {where}{error.strerror}; free some space and try again"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return SettingsError(f"{where}{error.strerror}: raise the limit (ulimit -n; LimitNOFILE= of a service)")
    if error.errno in DENIED and where:
        return SettingsError(f"{where}{error.strerror}")
    return None


def _for_a_terminal(sentence: str) -> str:
    """Returns: what may hold names out of somebody's file: short enough to read, and nothing in it steers a terminal."""
    if len(sentence) > LONGEST_SENTENCE:
        half = LONGEST_SENTENCE // 2
        sentence = f"{sentence[:half]} [...] {sentence[-half:]}"
    return printable(sentence)


if __name__ == "__main__":
    main()
