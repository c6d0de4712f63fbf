"""Lists of messages in all their spellings: `role`/`content`, ShareGPT's `from`/`value`, content parts, tool calls.

Content parts that hold text are joined without a separator, as chat templates do. Any other part (an image, audio)
makes the record unusable here, because dropping it would change what was said. A tool call of an assistant becomes
text in the form of ShareGPT's `function_call`: `{"name": ..., "arguments": {...}}`, a list of them for several calls.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from raysift.pool.formats.problem import RecordProblem, kind_of
from raysift.pool.json_text import dump, load

Turn = tuple[str, str]  # role as it was spelt, content
Turns = list[Turn]

TEXT_PARTS = ("text", "input_text", "output_text")


def read_turns(value: Any, field: str) -> Turns:
    """A list of message objects, or its JSON text as a CSV cell holds it."""
    if isinstance(value, str):
        try:
            value = load(value)
        except ValueError:
            raise RecordProblem("wrong_type", f"'{field}' is text that is not a JSON list of messages") from None
    if not isinstance(value, list):
        raise RecordProblem("wrong_type", f"'{field}' is {kind_of(value)}, expected a list of messages")
    return [read_turn(message, f"{field}[{number}]") for number, message in enumerate(value)]


def read_turn(message: Any, where: str) -> Turn:
    """One message object."""
    if not isinstance(message, dict):
        raise RecordProblem("wrong_type", f"{where} is {kind_of(message)}, expected an object with role and content")
    role = message.get("role")
    if role is None:
        role = message.get("from")
    if not isinstance(role, str):
        found = ", ".join(sorted(map(str, message)))
        raise RecordProblem("wrong_type", f"{where} has no 'role' or 'from' that is text (found: {found})")
    content = message.get("content")
    if content is None:
        content = message.get("value")
    if type(content) is not str:
        content = _content(content, message, where)
    if message.get("tool_calls"):
        content += ("\n" if content else "") + _tool_calls(message["tool_calls"], where)
    return role, content


def _content(content: Any, message: dict[str, Any], where: str) -> str:
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise RecordProblem(
            "wrong_type", f"{where}: the content is {kind_of(content)}, expected text or a list of parts"
        )
    return "".join([_part(part, where) for part in content])


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise RecordProblem("wrong_type", f"{where}: a content part is {kind_of(part)}, expected an object")
    if part.get("type", "text") not in TEXT_PARTS:
        raise RecordProblem("unsupported_content", f"{where}: a content part is of a type other than text")
    for key in ("text", "value", "content"):
        if isinstance(part.get(key), str):
            return str(part[key])
    raise RecordProblem("wrong_type", f"{where}: a text part holds no text")


def _tool_calls(calls: Any, where: str) -> str:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RecordProblem("wrong_type", f"{where}: 'tool_calls' is no list of objects")
    plain = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict):
            raise RecordProblem("wrong_type", f"{where}: a tool call's 'function' is {kind_of(function)}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            # Some models write arguments that are not JSON; the text itself is then what was said.
            with suppress(ValueError):
                arguments = load(arguments)
        plain.append({"name": function.get("name"), "arguments": arguments})
    return dump(plain[0] if len(plain) == 1 else plain).decode("utf-8")


def with_system(system: Any, turns: Turns) -> Turns:
    """The turns with a record's separate system text in front, where there is one."""
    if system is None or system == "":
        return turns
    if not isinstance(system, str):
        raise RecordProblem("wrong_type", f"'system' is {kind_of(system)}, expected text")
    return [("system", system), *turns]
