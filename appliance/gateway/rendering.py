"""Asks the processes that render chat templates, and names the control tokens of what they say.

Rules kept here:
* a process is started when it is needed and as often as it ends; one rendering at a time in each;
* a rendering that ends its process is an error of its request alone;
* what callers wrote goes there veiled (`appliance.gateway.content`), so that a control token in
  what comes back is the template's; those get their names, and only then the veil is lifted.

Blocking: called in threads by `appliance.gateway.tokenize`.
"""

from __future__ import annotations

import json
import logging
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, LifoQueue
from typing import Any

from appliance.core.errors import InvalidInput, Unavailable
from appliance.gateway import renderer
from appliance.gateway.turns import KEPT, TEMPLATES
from appliance.gateway.vocabulary import ControlToken

logger = logging.getLogger(__name__)

PROCESSES = TEMPLATES + KEPT
WALL_SECONDS = 20.0
"""Longest wait for one rendering; the kernel ends it by its processor time long before."""
END_SECONDS = 5.0
_FIRST_PRIVATE = 0x100000
_LAST_PRIVATE = 0x10FFFD

Message = Mapping[str, str]


class Marks:
    """Finds control tokens that a template wrote, and veils those that it did not write."""

    def __init__(self, controls: Sequence[ControlToken]) -> None:
        known = [control for control in controls if control.added]
        self._names = {control.text: control.name for control in known}
        shown = [text.strip() for text in self._names]
        self._edges = sorted({end for text in shown for end in (text[0], text[-1])})
        # The longest first, as the tokenizer takes them.
        known.sort(key=lambda control: len(control.text), reverse=True)
        self._pattern = re.compile("|".join(map(_pattern, known))) if known else None

    def veil(self, texts: Sequence[str]) -> dict[str, str]:
        """For each edge letter of a control token one that is in none of the texts.

        Raises InvalidInput when so many private letters are written that none is left.
        """
        used = set().union(*texts)
        numbers = range(_FIRST_PRIVATE, _LAST_PRIVATE + 1)
        free = (letter for number in numbers if (letter := chr(number)) not in used)
        veil = dict(zip(self._edges, free, strict=False))
        if len(veil) < len(self._edges):
            raise _refused("it has every letter for private use that there is")
        return veil

    def named(self, text: str, veil: Mapping[str, str]) -> str:
        """A rendered text with names in place of its control tokens, unveiled."""
        if self._pattern is not None:
            text = self._pattern.sub(lambda found: self._names[found[0]], text)
        for letter, hidden in veil.items():
            text = text.replace(hidden, letter)
        return text


def _veiled(text: str, veil: Mapping[str, str]) -> str:
    # Letter by letter is a tenth of `translate`'s time, in which nobody else has the interpreter.
    for letter, hidden in veil.items():
        text = text.replace(letter, hidden)
    return text


def _pattern(control: ControlToken) -> str:
    text = re.escape(control.text)
    return rf"(?<!\w){text}(?!\w)" if control.whole_word else text


class ChatTemplate:
    """The template of one model.

    Raises InvalidInput when it is no template.
    """

    def __init__(
        self,
        renderers: Renderers,
        template: str,
        controls: Sequence[ControlToken],
        bos: str = "",
        eos: str = "",
    ) -> None:
        self._renderers = renderers
        self._marks = Marks(controls)
        self._fixed = {"template": template, "bos": bos, "eos": eos}
        renderers.render({**self._fixed, "messages": [], "veil": {}})

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation, its control tokens by name. Raises InvalidInput."""
        contents = [message["content"] for message in messages]
        veil = self._marks.veil([*self._fixed.values(), *contents])
        veiled = [
            {"role": message["role"], "content": _veiled(message["content"], veil)}
            for message in messages
        ]
        text = self._renderers.render({**self._fixed, "messages": veiled, "veil": veil})
        return self._marks.named(text, veil)


class Renderers:
    """The processes, `PROCESSES` at most."""

    def __init__(self) -> None:
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(PROCESSES):
            self._idle.put(None)
        self._closed = False

    def render(self, asked: Mapping[str, Any]) -> str:
        """The text. Raises InvalidInput for what the template does not take, Unavailable."""
        message = json.dumps(asked).encode()
        with self._process() as process:
            answer = json.loads(process.ask(message))
        if problem := answer.get("problem"):
            raise _refused(problem)
        return str(answer["text"])

    @contextmanager
    def _process(self) -> Iterator[_Process]:
        process = self._idle.get()
        try:
            if self._closed:
                raise Unavailable("the gateway stops: repeat the request", retry_after=1.0)
            if process is not None and process.ended:
                process.end()
                process = None
            process = process or _Process()
            yield process
        finally:
            self._idle.put(process)
            if self._closed:
                self._end_idle()

    def close(self) -> None:
        """Start none any more, and end each as soon as it renders nothing."""
        self._closed = True
        self._end_idle()

    def _end_idle(self) -> None:
        idle: list[_Process | None] = []
        with suppress(Empty):
            while True:
                idle.append(self._idle.get_nowait())
        for process in idle:
            if process is not None:
                process.end()
            # Whoever waits for one hears that there is none.
            self._idle.put(None)


def _refused(problem: str) -> InvalidInput:
    return InvalidInput(
        f"the model's chat template does not take this conversation: {problem}",
        fields={"messages": problem},
    )


class _Process:
    """One of them."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", renderer.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={},
                # A signal to the gateway's group is for the gateway, which still answers a while.
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(
                "no process for chat templates can be started now: repeat the request later",
                retry_after=2.0,
            ) from error

    @property
    def ended(self) -> bool:
        """Whether it is no more."""
        return self._process.poll() is not None

    def ask(self, message: bytes) -> bytes:
        """Its answer.

        Raises InvalidInput when the rendering took too long, Unavailable when it ended otherwise.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        answer, late = b"", False
        if stdin is not None and stdout is not None:
            with suppress(OSError):
                renderer.write(stdin, message)
                late = not select.select([stdout], [], [], WALL_SECONDS)[0]
                answer = b"" if late else renderer.read(stdout)
        if answer:
            return answer
        if not late:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        if self.end() == -signal.SIGPROF or late:
            raise _refused("it takes too long")
        raise Unavailable(
            "the process that renders chat templates ended: repeat the request", retry_after=1.0
        )

    def end(self) -> int:
        """End it, whatever it does; its exit code."""
        self._process.kill()
        code = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                # What it did not read is of no use to anybody now.
                with suppress(OSError):
                    stream.close()
        logger.info("a process for chat templates ended", extra={"code": code})
        return code
