"""The process in which chat templates run: `python -m appliance.gateway.renderer`.

A template is a program that somebody imported, so it runs apart from the gateway. Rules kept here:
* jinja2's immutable sandbox, small multiplications and bounded loops, as templates of the field
  need no more;
* so many seconds of the processor for a rendering, after which the kernel ends the process, and so
  many bytes of memory for the process; it may write no file and open next to none;
* it is given a conversation and nothing else: no token, no key, no environment;
* what a template raises is told as a sentence; nothing of a conversation is logged.

The attacks: a template that reaches Python's inside, that never ends, that fills the memory.
Started and asked by `appliance.gateway.rendering`; ends when its pipe is closed.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import IO, Any, NoReturn

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.core.process import harden
from appliance.gateway.content import VeiledText

CPU_SECONDS = 1.0
MEMORY_BYTES = 768 << 20
LENGTH = struct.Struct(">I")
"""Before each message of either side: its length."""
MAX_PROBLEM = 200
MAX_CHARACTERS = 8 << 20

_MAX_FACTOR = 1 << 31
_MAX_POWER = 8
_MAX_ROUNDS = 100_000
_FILES = 16


def _raise(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


class _Sandbox(ImmutableSandboxedEnvironment):
    """Multiplies small numbers only: a repeated text or a power could fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(
        self,
        context: Context,
        operator: str,
        left: Any,  # noqa: ANN401 - whatever a template has
        right: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """One of the intercepted operations. Raises SecurityError for large ones."""
        small = all(
            isinstance(value, (int, float)) and abs(value) <= _MAX_FACTOR for value in (left, right)
        )
        if not small or (operator == "**" and right > _MAX_POWER):
            raise SecurityError("a template may multiply small numbers only")
        return super().call_binop(context, operator, left, right)


def _limited_range() -> Callable[..., range]:
    """`range` for one rendering, whose loops may go round so often altogether."""
    left = _MAX_ROUNDS

    def limited(*bounds: int) -> range:
        nonlocal left
        made = range(*bounds)
        left -= len(made)
        if left < 0:
            raise SecurityError("the template's loops go round too often")
        return made

    return limited


def _environment() -> _Sandbox:
    """What templates of the field expect (`transformers`, chat_template_utils)."""
    # Its output becomes token ids, never a page: escaping would change the prompt.
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    return environment


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def rendered(asked: Mapping[str, Any]) -> dict[str, str]:
    """The text of a conversation, or the problem that the template has with it.

    Args:
        asked: `template`, `messages`, `bos` and `eos`; `veil`: letter -> what stands for it in the
            messages. Without messages the template is only compiled.
    """
    try:
        template = _compiled(asked["template"])
        if not asked["messages"]:
            return {"text": ""}
        text = template.render(
            messages=[
                {"role": message["role"], "content": VeiledText(message["content"], asked["veil"])}
                for message in asked["messages"]
            ],
            add_generation_prompt=True,
            bos_token=asked["bos"],
            eos_token=asked["eos"],
            range=_limited_range(),
            tools=None,
            documents=None,
        )
    except MemoryError:
        return {"problem": "it needs too much memory"}
    # A template is a program that somebody imported: it can raise whatever Python can.
    except Exception as error:  # noqa: BLE001
        told = isinstance(error, jinja2.TemplateError)
        return {"problem": str(error)[:MAX_PROBLEM] if told else "it fails"}
    if len(text) > MAX_CHARACTERS:
        return {"problem": "it makes too long a text"}
    return {"text": text}


def read(stream: IO[bytes]) -> bytes:
    """The next message; empty at the end."""
    head = stream.read(LENGTH.size)
    return stream.read(*LENGTH.unpack(head)) if len(head) == LENGTH.size else b""


def write(stream: IO[bytes], message: bytes) -> None:
    """Send a message."""
    stream.write(LENGTH.pack(len(message)) + message)
    stream.flush()


def _confine() -> None:
    harden()
    os.chdir("/")
    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(what, (most, most))
    # The kernel's own answer to a template that does not end.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def main() -> int:
    """Render until the gateway closes the pipe."""
    _confine()
    while message := read(sys.stdin.buffer):
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answer = json.dumps(rendered(json.loads(message)), ensure_ascii=True).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        write(sys.stdout.buffer, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
