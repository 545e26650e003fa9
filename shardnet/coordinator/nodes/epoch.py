"""The coordinator's epoch: a counter in the home folder that grows with each start, so that nodes can tell an old task from a new one."""

from __future__ import annotations

from pydantic import TypeAdapter

from shardnet.shards import Frozen
from shardnet.swarm.home import Home, make_folder, read_records, write_records


class _Epoch(Frozen):
    epoch: int = 0


_EPOCH: TypeAdapter[_Epoch] = TypeAdapter(_Epoch)


def next_epoch(home: Home) -> int:
    """Returns: a number larger than at every start before. Writes a file. Raises: SettingsError if it cannot."""
    with home.locked():
        make_folder(home.swarm)
        path = home.swarm / "epoch.json"
        epoch = read_records(path, _EPOCH, _Epoch()).epoch + 1
        write_records(path, _EPOCH, _Epoch(epoch=epoch))
    return epoch
