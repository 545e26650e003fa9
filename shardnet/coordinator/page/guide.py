"""What somebody with a new swarm does next, step by step: what to type, and where. Pure."""

from __future__ import annotations

from typing import Any

from shardnet.messages import Address
from shardnet.swarm.addresses import is_loopback

Json = dict[str, Any]


def guide(picture: Json, enrol: Address | None) -> list[Json]:
    """Returns: the steps in order, each with a title, sentences, commands, and whether it is done.

    Args:
        enrol: where other machines are taken in, as they reach it; None: not here.
    """
    return [_model(picture), _node(picture), _machine(picture, enrol)]


def _model(picture: Json) -> Json:
    return {
        "step": "model",
        "title": "Have a model cut into shards",
        "done": bool(picture["models"]),
        "says": [
            "A GGUF file, a Hugging Face checkpoint or the address of a GGUF becomes shards in the folder models_cache. "
            "Then start the coordinator again, or a node in that folder, which tells the coordinator what it has.",
        ],
        "commands": ["shardnet split MODEL.gguf --shards 3"],
    }


def _node(picture: Json) -> Json:
    return {
        "step": "node",
        "title": "Start a node on this machine",
        "done": bool(picture["nodes"]),
        "says": ["It takes the layers that the coordinator gives it, and fetches what it does not have."],
        "commands": ["shardnet node"],
    }


def _machine(picture: Json, enrol: Address | None) -> Json:
    step: Json = {
        "step": "machine",
        "title": "Let the next machine in",
        "done": len({_host(one) for one in picture["nodes"]} - {""}) > 1,
        "says": [],
        "commands": [],
        "takes_token": enrol is not None,
    }
    if enrol is None:
        step["says"] = [
            "This coordinator takes in no machines: join tokens are made on the machine of the swarm's owner, with listen.enrol set."
        ]
        return step
    if is_loopback(enrol.host):
        step["says"] = [
            "This coordinator listens on this machine only: no other one reaches it. Start it again like this; a join token that is made "
            "now lets in another home folder of this machine.",
        ]
        step["commands"] = ["shardnet coordinator --listen 0.0.0.0:7700 --enrol 0.0.0.0:7701"]
        return step
    step["says"] = ["Install shardnet there, and type these two lines. The token works once, for an hour."]
    step["commands"] = ["shardnet join TOKEN", "shardnet node --listen 0.0.0.0:7710"]
    return step


def _host(node: Json) -> str:
    host, _, _ = str(node["address"] or "").rpartition(":")
    return host
