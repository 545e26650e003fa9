"""Console entry point. Every error of ours becomes one sentence and its exit code; a traceback means a bug of ours."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path and not __file__.startswith(f"{sys.path[0]}/"):
    # `python -m` looks for modules where somebody happens to stand first: a json.py there would run in place of the real one.
    del sys.path[0]

from shardnet import standard_streams
from shardnet.errors import NoRoomError, ShardnetError, printable
from shardnet.files import FULL
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
    except OSError as error:
        if error.errno not in FULL:
            raise
        standard_streams.give_up_output()
        say(
            f"shardnet: a disk is full, that of standard output perhaps: {error.strerror}; free some space and try again"
        )
        sys.exit(NoRoomError.exit_code)


def _for_a_terminal(sentence: str) -> str:
    """Returns: what may hold names out of somebody's file: short enough to read, and nothing in it steers a terminal."""
    if len(sentence) > LONGEST_SENTENCE:
        half = LONGEST_SENTENCE // 2
        sentence = f"{sentence[:half]} [...] {sentence[-half:]}"
    return printable(sentence)


if __name__ == "__main__":
    main()
