"""One run of a command against one server: its identity, its calls, and how it prints.

Rules kept here: only the RPCs that the command has named are called; a call that needs a fresh
second factor is repeated once after a code was given; a changing call carries a request id, so that
the command can be repeated with `--request-id`.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from appliance.cli import describing, naming, output, prompts
from appliance.cli.command import Shared
from appliance.cli.values import paths_of
from appliance.client.connection import DEADLINE, Connection
from appliance.client.methods import Method, find
from appliance.client.pages import PAGE_SIZE, all_pages
from appliance.client.profiles import Profile, Profiles
from appliance.core import names
from appliance.core.errors import FreshMfaRequired, InvalidInput, Unauthenticated
from appliance.core.files import read_secret
from appliance.core.identity import PrincipalKind

if TYPE_CHECKING:
    from appliance.cli.watching import Watcher

Value = Any  # JSON of any shape
TOKEN_FILE = "APPLIANCE_TOKEN_FILE"  # noqa: S105 - names a variable
_VERIFY = "AuthService.VerifyTotp"


class CommandSession:
    """Calls a server for one command; a `with` block closes its connections."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.profiles = Profiles()
        self._profile: Profile | None = None
        self._token: str | None = None
        self._connections: list[Connection] = []
        self._known: Sequence[str] = ()
        self._watching: Watcher | None = None
        self.calls = 0

    @property
    def profile(self) -> Profile:
        """The context in use. Raises FailedPrecondition or NotFound when there is none."""
        if self._profile is None:
            self._profile = self.profiles.get(self.shared.context)
        return self._profile

    @property
    def project(self) -> str:
        """The project that short names belong to; empty when none is chosen."""
        return self.shared.project or self.profile.project

    @property
    def request_id(self) -> str:
        """The id of a change: the one given, or a new one."""
        return self.shared.request_id or str(uuid.uuid4())

    @property
    def token(self) -> str:
        """The bearer token: of the file that the environment names, else of the session."""
        if self._token is None:
            file = os.environ.get(TOKEN_FILE)
            self._token = (
                read_secret(Path(file)).decode().strip()
                if file
                else self.profiles.token(self.profile)
            )
        return self._token

    def use_token(self, token: str) -> None:
        """Call as somebody else from now on."""
        self._token = token
        self.close()

    def read_token_again(self) -> None:
        """Call with the newest token from now on: another command may have logged in meanwhile."""
        before = self._token
        self._token = None
        if self.token != before:
            self.close()

    def name(self, kind: str, text: str) -> str:
        """A resource name from what was typed; see `naming.complete`."""
        project = self.shared.project
        inside = names.PATTERNS[kind].startswith("projects/{project}/")
        if not project and (inside or kind == "serviceAccount"):
            project = self.profile.project
        return naming.complete(kind, text, project)

    def either(self, text: str, whole: str, version: str) -> names.Name:
        """The name of a resource, or of a version of it: `docs` or `docs/3`."""
        if "/" not in text:
            return names.Name.parse(self.name(whole, text), whole)
        if text.startswith("projects/"):
            return names.Name.parse(text, whole, version)
        return names.Name.parse(self.name(version, text), version)

    @property
    def parent(self) -> str:
        """`projects/{project}` of the chosen project."""
        return naming.parent(self.project)

    def connection(self, address: str = "") -> Connection:
        """A connection to the control plane, or to the gateway at `host:port`."""
        wanted = address or self.profile.server
        for known in self._connections:
            if known.address == wanted:
                return known
        server = PrincipalKind.GATEWAY if address else PrincipalKind.CONTROL
        made = Connection(wanted, self.profile.ca_pem.encode(), self.token, server=server)
        self._connections.append(made)
        return made

    def call(self, rpc: str, /, *, timeout: float | None = DEADLINE, **fields: Any) -> Any:
        """One request, one response; nested messages are given as dictionaries."""
        method = self._method(rpc)
        request = self._request(method, fields)

        def ask() -> Any:
            self.calls += 1
            connection = self.connection()
            stub = connection.stub(method.stub)
            return connection.call(getattr(stub, method.short), request, timeout=timeout)

        return self._with_fresh_code(ask)

    def each(self, rpc: str, field: str, /, *, limit: int = 0, **fields: Any) -> Iterator[Value]:
        """The resources of a list as dictionaries, page by page as they are taken.

        Args:
            rpc: a List method.
            field: in which its response has them.
            limit: how many at most; 0 for all.
            fields: of the request.
        """
        method = self._method(rpc)
        connection = self.connection()
        stub = getattr(connection.stub(method.stub), method.short)

        def ask(request: Any, **how: Any) -> Any:
            self.calls += 1
            return stub(request, **how)

        found = all_pages(connection, ask, method.filled(**fields), field)
        return map(output.plain, itertools.islice(found, limit or None))

    def rows(self, rpc: str, field: str, /, *, limit: int = 0, **fields: Any) -> Iterator[Value]:
        """The same, to be shown as they are: pages are no larger than `--limit`.

        Their fields are those that `--filter` and `--sort` may name.
        """
        self._known = _paths_of(self._method(rpc), field)
        most = self.shared.listing.pages_of or limit
        if most:
            fields = {"page_size": min(most, PAGE_SIZE), **fields}
        return self.each(rpc, field, limit=limit, **fields)

    def list(self, rpc: str, field: str, /, *, limit: int = 0, **fields: Any) -> list[Value]:
        """The resources of a list as dictionaries, all at once."""
        return list(self.each(rpc, field, limit=limit, **fields))

    def stream(
        self, rpc: str, /, *, at: str = "", timeout: float | None = None, **fields: Any
    ) -> Iterator[Any]:
        """One request, a stream of responses, from the control plane or the server `at`."""
        method = self._method(rpc)
        connection = self.connection(at)
        stub = connection.stub(method.stub)
        return connection.stream(
            getattr(stub, method.short), method.filled(**fields), timeout=timeout
        )

    def show(self, value: Any, columns: Sequence[output.Column] | None = None) -> None:
        """Print a message, a dictionary or rows as the command was asked to.

        Of rows only those that are wanted. A single resource of a `describe` is printed with what
        is related to it.
        """
        if not isinstance(value, list | dict | Iterator):
            in_words = columns is None and self.form in output.PEOPLE
            value = output.readable(value) if in_words else output.plain(value)
        if isinstance(value, dict):
            if self.shared.sections is not None:
                describing.show(self, value, self.shared.sections)
            else:
                self.print(value, columns)
            return
        rows = self.shared.listing.chosen(value, self._known)
        if self.shared.listing.watch:
            self._watcher().show(rows, columns)
        else:
            self.print(rows, columns)

    def print(self, value: Any, columns: Sequence[output.Column] | None = None) -> None:
        """Print a dictionary or rows as they are."""
        headings = not self.shared.listing.no_headers
        output.show(value, self.form, columns, headings=headings)

    @property
    def form(self) -> str:
        """How to print, as it was asked for: `wide` is a form of its own here."""
        return "wide" if self.shared.wide else self.shared.output

    def _watcher(self) -> Watcher:
        if self._watching is None:
            from appliance.cli.watching import Watcher  # noqa: PLC0415 - few commands watch

            self._watching = Watcher(self.form, headings=not self.shared.listing.no_headers)
        return self._watching

    def close(self) -> None:
        """Close every connection."""
        while self._connections:
            self._connections.pop().close()

    def __enter__(self) -> Self:
        """The session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every connection."""
        self.close()

    def _method(self, name: str) -> Method:
        if name not in self.shared.methods:
            raise KeyError(f"the command does not say that it calls {name}")
        return find(name)

    def _request(self, method: Method, fields: dict[str, Any]) -> Any:
        request = method.filled(**fields)
        if "request_id" in method.request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = self.request_id
        return request

    def _with_fresh_code(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except FreshMfaRequired:
            if os.environ.get(TOKEN_FILE):
                raise
            if not self._renewed():
                raise
        return ask()

    def _renewed(self) -> bool:
        """Whether a code was given and right; False when nobody is there to give one."""
        if self.shared.code_file is None and prompts.interactive():
            click.echo("this needs a code of the last five minutes", err=True)
        for left in reversed(range(prompts.tries(self.shared.code_file))):
            code = prompts.code(self.shared.code_file)
            if code is None:
                break
            try:
                self._renew(code)
            except (InvalidInput, Unauthenticated) as error:
                if left == 0:
                    raise prompts.in_words(prompts.WrongCode, error.message, error) from error
                click.echo(error.message, err=True)
            else:
                return True
        return False

    def _renew(self, code: str) -> None:
        self.profiles.check_writable()
        method = find(_VERIFY)
        connection = self.connection()
        request = method.filled(token=self.token, code=code)
        answer = connection.call(connection.stub(method.stub).VerifyTotp, request)
        self.profiles.keep_token(self.profile, answer.token)
        self.use_token(answer.token)


def _paths_of(method: Method, field: str) -> Sequence[str]:
    """The fields of what a List method returns, as `--filter` names them."""
    service, _, short = method.name.partition(".")
    called = method.request.DESCRIPTOR.file.services_by_name[service].methods_by_name[short]
    return paths_of(called.output_type.fields_by_name[field].message_type)
