"""Words to token ids: templates in their sandbox, the context's limits, one read per model."""

from __future__ import annotations

import asyncio

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import InvalidInput, Unavailable
from appliance.gateway.snapshot import Route
from appliance.gateway.tokenize import Models, ServedModel, room
from tests.fakes.routing import TEMPLATE
from tests.fakes.worker import END, tokenizer

HI = [{"role": "user", "content": "Grüße"}]


def served(template: str = TEMPLATE) -> routing_service_pb2.ServedTokenizer:
    return routing_service_pb2.ServedTokenizer(
        tokenizer_json=tokenizer().to_str().encode(),
        chat_template=template,
        end_token_ids=[END],
        bos_token="<s>",
        eos_token="</s>",
    )


async def test_a_conversation_becomes_the_templates_text() -> None:
    ids = await ServedModel(served()).chat(HI)
    assert tokenizer().decode(ids, skip_special_tokens=False) == (
        "<s>user: Grüße</s><s>assistant: "
    )


async def test_a_long_text_is_the_same_as_a_short_one() -> None:
    model = ServedModel(served())
    assert await model.prompt("ab" * 5000) == await model.prompt("ab") * 5000


async def test_what_templates_of_the_field_use_is_there() -> None:
    template = (
        "{%- for m in messages %}\n"
        "  {%- if loop.first %}{{ bos_token }}{%- endif %}\n"
        "  {%- if m.role == 'system' %}{%- continue %}{%- endif %}\n"
        "  {{- m | tojson }}{{ strftime_now('%%') }}\n"
        "{%- endfor %}"
    )
    messages = [{"role": "system", "content": "s"}, *HI]
    ids = await ServedModel(served(template)).chat(messages)
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
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    ],
)
async def test_a_template_reaches_nothing(template: str) -> None:
    with pytest.raises(InvalidInput):
        await ServedModel(served(template)).chat(HI)


async def test_what_a_template_says_is_told() -> None:
    with pytest.raises(InvalidInput, match="roles must alternate"):
        await ServedModel(served("{{ raise_exception('roles must alternate') }}")).chat(HI)


async def test_conversations_that_no_model_takes() -> None:
    model = ServedModel(served())
    for messages in (
        [],
        [{"role": "root", "content": ""}],
        [{"role": "user", "content": "\ud800"}],
    ):
        with pytest.raises(InvalidInput):
            await model.chat(messages)
    with pytest.raises(InvalidInput, match="plain prompt"):
        await ServedModel(served("")).chat(HI)


@pytest.mark.parametrize(
    "broken",
    [
        routing_service_pb2.ServedTokenizer(tokenizer_json=b"{}"),
        routing_service_pb2.ServedTokenizer(tokenizer_json=b"\xff"),
        served("{% if %}"),
    ],
)
def test_a_broken_tokenizer_is_told(broken: routing_service_pb2.ServedTokenizer) -> None:
    with pytest.raises(Unavailable):
        ServedModel(broken)


def test_the_room_in_the_context() -> None:
    assert room(10, 0, 30).max_tokens == 20
    assert room(10, 5, 30).max_tokens == 5
    assert room(10, 500, 30).max_tokens == 20
    assert room(29, 0, 30).max_tokens == 1
    for prompt, wanted in ((30, 1), (0, 1), (5, -1)):
        with pytest.raises(InvalidInput):
            room(prompt, wanted, 30)


async def test_a_model_is_read_once_and_again_after_a_failure() -> None:
    calls = 0

    async def fetch(endpoint: str) -> routing_service_pb2.ServedTokenizer:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if calls == 1:
            raise Unavailable("not now")
        return served()

    models = Models(fetch)
    route = Route("projects/p/endpoints/e", "m", 10, (), coming=False)
    with pytest.raises(Unavailable):
        await models.get(route)
    found = await asyncio.gather(*(models.get(route) for _ in range(5)))
    assert calls == 2
    assert len({id(model) for model in found}) == 1
