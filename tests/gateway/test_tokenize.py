"""Words to token ids: templates in their sandbox, the context's limits, one read per model."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import InvalidInput, Unavailable
from appliance.gateway.rendering import PROCESSES, Renderers
from appliance.gateway.tokenize import Desk, ServedModel, room
from tests.fakes.routing import TEMPLATE
from tests.fakes.worker import END, tokenizer

MOST = 1 << 20
ASKED = {
    "template": "hi",
    "messages": [{"role": "user", "content": ""}],
    "bos": "",
    "eos": "",
    "veil": {},
}
HI = [{"role": "user", "content": "Grüße"}]


def served(template: str = TEMPLATE) -> routing_service_pb2.ServedTokenizer:
    return routing_service_pb2.ServedTokenizer(
        tokenizer_json=tokenizer().to_str().encode(),
        chat_template=template,
        end_token_ids=[END],
        bos_token="<s>",
        eos_token="</s>",
    )


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    made = Desk.new()
    yield made
    made.close()


async def test_a_conversation_becomes_the_templates_text(desk: Desk) -> None:
    ids = await ServedModel(served(), desk).chat(HI, MOST)
    assert tokenizer().decode(ids, skip_special_tokens=False) == (
        "<s>user: Grüße</s><s>assistant: "
    )


async def test_a_long_text_is_the_same_as_a_short_one(desk: Desk) -> None:
    model = ServedModel(served(), desk)
    assert await model.prompt("ab" * 5000, MOST) == await model.prompt("ab", MOST) * 5000


async def test_what_templates_of_the_field_use_is_there(desk: Desk) -> None:
    template = (
        "{%- for m in messages %}\n"
        "  {%- if loop.first %}{{ bos_token }}{%- endif %}\n"
        "  {%- if m.role == 'system' %}{%- continue %}{%- endif %}\n"
        "  {{- m | tojson }}{{ strftime_now('%%') }}\n"
        "{%- endfor %}"
    )
    messages = [{"role": "system", "content": "s"}, *HI]
    ids = await ServedModel(served(template), desk).chat(messages, MOST)
    assert tokenizer().decode(ids, skip_special_tokens=False) == (
        '<s>{"role": "user", "content": "Grüße"}%'
    )


@pytest.mark.attack
@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ raise_exception('no such conversation') }}",
        "{{ 1 / 0 }}",
        "{{ 'x' * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ lipsum(n=1000000000) }}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    ],
)
async def test_a_template_reaches_nothing(desk: Desk, template: str) -> None:
    with pytest.raises(InvalidInput):
        await ServedModel(served(template), desk).chat(HI, MOST)


DOUBLING = (
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}"
)


@pytest.mark.attack
@pytest.mark.parametrize(
    "template",
    [
        DOUBLING,
        "{{ 'x'.center(10 ** 6 * 10 ** 6) }}",
        "{{ '%1000000000000d' % 1 }}",
        "{% for a in m %}{% for b in m %}{% for c in m %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(90000) %}{{ m }}{% endfor %}",
    ],
)
async def test_a_template_that_explodes_ends_its_own_request_alone(
    desk: Desk, template: str
) -> None:
    wide = "{% set m = 'x' | center(9000) %}" + template
    exploding, well = ServedModel(served(wide), desk), ServedModel(served(), desk)
    with pytest.raises(InvalidInput, match="chat template does not take this"):
        await exploding.chat(HI, MOST)
    assert await well.chat(HI, MOST)


@pytest.mark.attack
def test_a_template_has_no_environment_and_opens_no_file() -> None:
    renderers = Renderers()
    assert renderers.render(ASKED) == "hi"
    process = renderers._idle.get()
    assert process is not None
    pid = process._process.pid
    status = Path(f"/proc/{pid}/environ").read_bytes()
    limits = Path(f"/proc/{pid}/limits").read_text()
    renderers._idle.put(process)
    renderers.close()
    assert status == b""
    assert re.search(r"Max file size +0 +0", limits)
    assert re.search(r"Max core file size +0 +0", limits)
    assert not Path(f"/proc/{pid}").exists()


def test_a_renderer_that_died_is_replaced() -> None:
    renderers = Renderers()
    assert renderers.render(ASKED) == "hi"
    process = renderers._idle.get()
    assert process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    renderers._idle.put(process)
    assert renderers.render(ASKED) == "hi"
    renderers.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_renderer_that_dies_while_it_is_asked_is_no_fault_of_the_request(number: int) -> None:
    renderers = Renderers()
    assert renderers.render(ASKED) == "hi"
    process = renderers._idle.get()
    assert process is not None
    os.kill(process._process.pid, number)
    with pytest.raises(Unavailable, match="repeat the request"):
        process.ask(b"{}")
    renderers.close()


def test_none_is_started_after_the_end() -> None:
    renderers = Renderers()
    assert renderers.render(ASKED) == "hi"
    renderers.close()
    for _ in range(PROCESSES + 1):
        with pytest.raises(Unavailable, match="stops"):
            renderers.render(ASKED)
    assert renderers._idle.qsize() == PROCESSES


async def test_what_a_template_says_is_told(desk: Desk) -> None:
    with pytest.raises(InvalidInput, match="roles must alternate"):
        await ServedModel(served("{{ raise_exception('roles must alternate') }}"), desk).chat(
            HI, MOST
        )


async def test_conversations_that_no_model_takes(desk: Desk) -> None:
    model = ServedModel(served(), desk)
    for messages in (
        [],
        [{"role": "root", "content": ""}],
        [{"role": "user", "content": "\ud800"}],
    ):
        with pytest.raises(InvalidInput):
            await model.chat(messages, MOST)
    with pytest.raises(InvalidInput, match="plain prompt"):
        await ServedModel(served(""), desk).chat(HI, MOST)


@pytest.mark.parametrize(
    "broken",
    [
        routing_service_pb2.ServedTokenizer(tokenizer_json=b"{}"),
        routing_service_pb2.ServedTokenizer(tokenizer_json=b"\xff"),
        served("{% if %}"),
    ],
)
def test_a_broken_tokenizer_is_told(
    desk: Desk, broken: routing_service_pb2.ServedTokenizer
) -> None:
    with pytest.raises(Unavailable):
        ServedModel(broken, desk)


def test_the_room_in_the_context() -> None:
    assert room(10, None, 30).max_tokens == 20
    assert room(10, 5, 30).max_tokens == 5
    assert room(10, 500, 30).max_tokens == 20
    assert room(29, None, 30).max_tokens == 1
    for prompt, wanted in ((30, 1), (0, 1)):
        with pytest.raises(InvalidInput):
            room(prompt, wanted, 30)
