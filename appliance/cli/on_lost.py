"""`--on-lost`: what happens to a job when a node of it is silent."""

from __future__ import annotations

import math
from typing import Any

import click

from appliance.cli.following import Duration


class OnLost(click.ParamType[dict[str, Any]]):
    """The message OnLost of `wait`, or of a time such as `300s`.

    Args:
        site: whether `site` may be said, too: as the site says.
    """

    name = "on-lost"

    def __init__(self, *, site: bool = False) -> None:
        self._site = site

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """The message as a dictionary."""
        if value == "wait":
            return {"wait": True}
        if value == "site" and self._site:
            return {}
        try:
            return {"replace_after_seconds": math.ceil(Duration().convert(value, param, ctx))}
        except click.BadParameter as error:
            words = "`wait` or `site`" if self._site else "`wait`"
            raise click.BadParameter(f"{error.message}, or {words}", ctx, param) from error
