"""`shardnet devices`: where layers can run on this machine."""

from __future__ import annotations

import json

import typer

from shardnet.cli.options import AsJson


def devices(
    as_json: AsJson = False,
) -> None:
    """List the processor and each GPU, with memory."""
    from shardnet.inference.llama.devices import all_devices
    from shardnet.log import human_bytes

    found = all_devices()
    if as_json:
        typer.echo(json.dumps({"devices": [device.model_dump() for device in found]}))
        return
    for device in found:
        typer.echo(
            f"{device.name:<8} {device.kind}  {human_bytes(device.free_bytes)} free of {human_bytes(device.total_bytes)}"
            f"  {device.description}"
        )
        if device.limit:
            typer.echo(f"  its memory: {device.limit}")
    if not any(device.kind == "gpu" for device in found):
        typer.echo("No GPU that this build of llama.cpp can use: layers run on the CPU.")
