"""Self-Instruct seed tasks: one instruction with several `instances` of input and output; each gives a row.

The rows of one record share its line in the file and its meta (name, is_classification and so on), beside their own inputs.
"""

from __future__ import annotations

from raysift.pool.formats import alpaca
from raysift.pool.formats.layout import Layout, Record, needs
from raysift.pool.formats.problem import RecordProblem, kind_of
from raysift.pool.formats.turns import Turns
from raysift.pool.given_input import INPUT


def read(record: Record) -> list[Turns]:
    instances = record.get("instances")
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise RecordProblem("wrong_type", f"'instances' is {kind_of(instances)}, expected a list of objects")
    if not instances:
        raise RecordProblem("no_messages", "'instances' is empty")
    return [alpaca.read({**instance, "instruction": record.get("instruction")})[0] for instance in instances]


LAYOUT = Layout(
    name="self_instruct",
    needs=needs("instruction instances"),
    fields=frozenset({"instruction", "instances"}),
    read=read,
    inputs=lambda record: [instance.get(INPUT) for instance in record["instances"]],
)
