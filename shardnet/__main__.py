"""Console entry point. Every error of ours becomes one sentence and its exit code; a traceback means a bug of ours."""

from __future__ import annotations

import sys

from shardnet.errors import ShardnetError

EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its code (docs/exit-codes.md)."""
    try:
        from shardnet.cli import app

        app()
    except ShardnetError as error:
        print(f"shardnet: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("shardnet: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as leaving:
        if leaving.code == EXIT_INTERRUPTED:  # Ctrl-C within a command, which typer makes into this
            print("shardnet: interrupted", file=sys.stderr)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
