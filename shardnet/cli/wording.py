"""What typer says of a value that cannot be used, in our own words."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup


class InOurWords(TyperGroup):
    """Commands whose refused values are told as those of a settings file are. Typer's newer versions pass on pydantic's sentences."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises: as typer does."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            from shardnet.faults import first_fault

            if isinstance(error.__cause__, ValidationError):
                error.message = first_fault(error.__cause__)[1]
            raise
