"""What the engine is asked to run for a leg of a task. Pure."""

from __future__ import annotations

from shardnet.inference.engine.steps import NO_SEQUENCE, NO_TOKEN, READINGS, Step
from shardnet.node.tasks.legs import Leg
from shardnet.steps import NextStep, columns


def first_step(leg: Leg, ahead: int) -> Step:
    """Returns: the step of the task itself.

    Args:
        ahead: further steps that may follow unasked.
    """
    task, stage = leg.task, leg.stage
    reading = task.reading if leg.following is None else None
    return Step(
        command_id=task.command_id,
        model_id=task.model_id,
        first_shard=stage.first_shard,
        end_shard=stage.end_shard,
        sequence_id=task.sequence_id,
        position=task.position,
        n_tokens=task.n_tokens,
        samples=task.samples,
        ahead=ahead if leg.is_alone else 0,
        return_logits=task.return_logits and leg.following is None,
        n_embd=columns(task.tensors, "hidden"),
        sampling=leg.sampling,
        begins_run=leg.takes_rows,
        stage=leg.number,
        source=leg.source,
        onward=leg.onward.node_id,
        stages=len(task.route),
        reads=0 if reading is None else READINGS.index(reading.kind),
        top=0 if reading is None else reading.top,
        next_token=NO_TOKEN if reading is None or reading.next_token is None else reading.next_token,
        copy_from=task.copy_from or NO_SEQUENCE,
    )


def further_step(leg: Leg, following: NextStep) -> Step:
    """Returns: a step of the task's run that is no row. By position, as it is made for each token."""
    task, stage = leg.task, leg.stage
    return Step(
        task.command_id,
        task.model_id,
        stage.first_shard,
        stage.end_shard,
        task.sequence_id,
        following.position,
        1,
        True,
        0,
        task.return_logits and leg.following is None,
        following.n_embd,
        stage=leg.number,
        sampling=leg.sampling,
    )
