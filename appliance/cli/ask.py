"""`appliance ask`: one question to a served model; the answer appears as it is made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.command import command as make
from appliance.cli.output import plain, safe
from appliance.core.errors import InvalidInput
from appliance.core.files import read_secret

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession


@make("ask", "SystemService.GetSystem", "InferenceService.Generate", project=True)
@click.argument("endpoint", metavar="ENDPOINT")
@click.argument("prompt", default="-")
@click.option("--system", metavar="TEXT", help="What the model should be, before the question.")
@click.option("--raw", is_flag=True, help="Go on from the text itself, without the chat template.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.7,
    show_default=True,
    help="0 chooses the likeliest token always.",
)
@click.option("--top-p", type=click.FloatRange(0, 1), help="Share of probability to choose from.")
@click.option("--seed", type=int, help="Seed of the choice.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is complete.")
@click.option("--token-file", metavar="FILE", help="Ask as the application of this token.")
def command(
    session: CommandSession,
    endpoint: str,
    prompt: str,
    system: str | None,
    *,
    raw: bool,
    no_stream: bool,
    token_file: str | None,
    **sampling: Any,
) -> None:
    """Ask a served model. PROMPT is `-` or missing: standard input."""
    if token_file:
        session.use_token(read_secret(Path(token_file)).decode().strip())
    if raw and system:
        raise click.UsageError("--raw sends the text as it is: leave out --system")
    text = sys.stdin.read() if prompt == "-" else prompt
    wanted = {key: value for key, value in sampling.items() if value is not None}
    request: dict[str, Any] = {"endpoint": session.name("endpoint", endpoint), "sampling": wanted}
    if raw:
        request["prompt"] = text
    else:
        said = [("system", system)] if system else []
        said.append(("user", text))
        request["chat"] = {"messages": [{"role": role, "content": what} for role, what in said]}
    gateway = session.call("SystemService.GetSystem").gateway_address
    whole = no_stream or session.shared.output != "table"
    pieces = session.stream("InferenceService.Generate", at=gateway, **request)
    try:
        _print(session, pieces, whole=whole)
    except InvalidInput as error:
        if "messages" in error.fields:
            hint = f"`appliance ask {endpoint} --raw` goes on from the text itself"
            error.metadata.setdefault("hint", hint)
        raise


def _print(session: CommandSession, pieces: Any, *, whole: bool) -> None:
    """Print the answer piece by piece, or whole as text or as an object."""
    texts: list[str] = []
    final = None
    for piece in pieces:
        texts.append(piece.text)
        final = piece
        if not whole:
            write_safely(piece.text)
    answer = "".join(texts)
    if session.shared.output == "table":
        write_safely(f"{answer}\n" if whole else "\n")
        return
    facts: dict[str, Any] = {"text": answer}
    if final is not None:
        last = plain(final)
        facts |= {"finish_reason": last["finish_reason"], "totals": last.get("totals", {})}
    session.show(facts)


def write_safely(text: str) -> None:
    """What a model writes must not steer a terminal; a file gets it as it is."""
    sys.stdout.write(safe(text, keep="\n\t") if sys.stdout.isatty() else text)
    sys.stdout.flush()
