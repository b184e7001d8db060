"""Commands about the resident host: its contents, and its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import click

from ..config import MODEL_ID, composed
from ..host.asking import EndedMeanwhile, asked, has_ended, state_of, terminate
from ..host.errors import HostStopped
from ..host.place import HostUnavailable, host_place
from ..host.served import served_names
from ..host.start import HostSilent
from .shown import json_option, show_json, show_line, show_table

_WAIT_SECONDS: Final = 10.0  # for the end of a host
_GROUP_SECONDS: Final = 30.0  # for one that waits for the ends of others


@click.command()
@json_option
def ps(*, as_json: bool) -> None:
    """Show the resident host: its models, their memory, and how long it stays.

    Also shows models served over several machines: their ranks, the memory of each, and when it
    was last heard. Never starts a host.
    """
    found = _asked({"ask": "ps"})
    served = {name: told for name in served_names() if (told := _asked({"ask": "ps"}, name))}
    if as_json:
        groups = [{**_plain(told), **_group(told)} for told in served.values()]
        show_json({**_plain(found), "served": groups})
        return
    if found is not None:
        _show(found)
    elif not served:
        click.echo("no host runs")
    for name, told in served.items():
        _show_group(name, told)


def _show(found: Mapping[str, Any]) -> None:
    show_line(_line(found))
    if (memory := found.get("memory")) is not None:
        show_line(_in_use(memory))
    models = [one for one in found.get("models", []) if isinstance(one, Mapping)]
    if models:
        columns = ("model", "weights", "cache", "state")
        show_table(columns, [_row(one) for one in models])


@click.command()
@click.argument("name", required=False)
@json_option
def stop(*, name: str | None, as_json: bool) -> None:
    """End the resident host once its current work is done; status 1 if it has not ended.

    Answers that take more than 8 seconds are cut. The next prompt starts another host. Models
    served over several machines end too, on all of them; with NAME only that one.
    """
    meant = _meant(name)
    pid = 0 if name else _end()
    ended = {one: _end(one) for one in meant}
    served = {one: pid_of for one, pid_of in ended.items() if pid_of}
    if as_json:
        groups = [{"name": one, "pid": pid_of} for one, pid_of in served.items()]
        show_json({"pid": pid or None, "ended": bool(pid), "served": groups})
        return
    if pid or not served:
        click.echo(f"the host (process {pid}) has ended" if pid else _none(name))
    for one, pid_of in served.items():
        click.echo(f"{MODEL_ID}/{one} (process {pid_of}) has ended, and its ranks")


def _meant(name: str | None) -> tuple[str, ...]:
    """The served models that are to end; ValueError where a name is none's."""
    names = served_names()
    if name is None:
        return names
    plain = composed(name).removeprefix(f"{MODEL_ID}/")
    if plain not in map(composed, names):
        raise ValueError(f"{name!r} is no model that is served over several machines")
    return (plain,)


def _none(name: str | None) -> str:
    return f"{name} is not served" if name else "no host runs"


def seen_by_host(
    ask: Mapping[str, Any],
    otherwise: str = "what it has in memory is not shown",
    *,
    served: str = "",
) -> Mapping[str, Any] | None:
    """The host's result, or that of a model that is served; None if there is none that answers.

    The reason is one line on stderr, with its consequence.
    """
    try:
        return asked(ask, served)
    except EndedMeanwhile:
        return None
    except (HostUnavailable, HostStopped) as error:
        click.echo(f"{error}; {otherwise}", err=True)
        return None


def _asked(ask: Mapping[str, Any], served: str = "") -> Mapping[str, Any] | None:
    try:
        return asked(ask, served)
    except EndedMeanwhile:
        return None
    except HostUnavailable as error:
        raise click.ClickException(str(error)) from error


def _end(served: str = "") -> int:
    """End the host and wait for it; its process, 0 for none. ClickException if it stays."""
    pid = 0
    try:
        found = asked({"ask": "stop", "why": "llm mlx-cached stop"}, served)
        if found is None:
            return 0
        pid = found["pid"]
    except HostSilent as error:
        pid = error.pid
        if not pid:
            raise click.ClickException(str(error)) from error
        terminate(pid)
    except EndedMeanwhile:
        return 0
    except HostUnavailable as error:
        raise click.ClickException(str(error)) from error
    wait = _GROUP_SECONDS if served else _WAIT_SECONDS
    if not has_ended(host_place(served), wait):
        raise click.ClickException(
            f"the host (process {pid}) has not ended in {wait:g} seconds; it is"
            f" {state_of(pid)}; kill -9 {pid} ends it, and what it had not written is lost"
        )
    return pid


def _plain(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """A host as programs read it; times in Unix seconds."""
    if found is None:
        return {"pid": None, "memory": None, "models": []}
    names = ("pid", "build", "stage", "busy", "keep", "memory", "models")
    idle_since, until = _times(found)
    plain = {name: found.get(name) for name in names}
    return plain | {"idle_since": idle_since, "until": until}


def _times(found: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The Unix times since when it is idle and until when it stays, None where not known."""
    now, idle, left = time.time(), found.get("idle"), found.get("left")
    since = int(now - idle) if isinstance(idle, int | float) else None
    until = int(now + left) if isinstance(left, int | float) else None
    return since, until


def _line(found: Mapping[str, Any]) -> str:
    build = found.get("build") or {}
    packages = f"{build.get('package')} (mlx {build.get('mlx')}, mlx-lm {build.get('mlx_lm')})"
    idle_since, until = _times(found)
    parts = [f"process {found.get('pid')}", f"version {packages}"]
    if idle_since is None:
        parts.append(f"answers {found.get('busy')}")
    else:
        parts.append(f"idle since {_clock(idle_since)}")
        parts.append("stays forever" if until is None else f"stays until {_clock(until)}")
    if found.get("stage") not in (None, "serving"):
        parts.append(f"{found.get('stage')}: {found.get('why')}")
    return ", ".join(parts)


def _in_use(memory: Mapping[str, Any]) -> str:
    from ..cache.sizes import format_size

    names = ("active", "pool", "counted")
    active, pool, counted = (format_size(int(memory.get(name, 0))) for name in names)
    return (
        f"MLX holds {active}, of which {counted} are the cache's, and keeps {pool} of freed buffers"
    )


def _group(told: Mapping[str, Any]) -> Mapping[str, Any]:
    group = told.get("group")
    return group if isinstance(group, Mapping) else {}


def _show_group(name: str, told: Mapping[str, Any]) -> None:
    """A model over several machines, and its ranks."""
    group = _group(told)
    ranks = [one for one in group.get("ranks", []) if isinstance(one, Mapping)]
    how = f"{group.get('split')}, {group.get('backend')}"
    show_line(f"{MODEL_ID}/{name} over {len(ranks)} ranks ({how}): {_line(told)}")
    show_table(("rank", "host", "MLX holds", "spoke"), [_rank_row(one) for one in ranks])


def _rank_row(rank: Mapping[str, Any]) -> tuple[str, str, str, str]:
    from ..cache.sizes import format_size

    seconds, held = rank.get("seconds"), rank.get("held")
    ago = f"{seconds:.1f} s ago" if isinstance(seconds, int | float) else "not yet"
    size = format_size(held) if isinstance(held, int) else "?"
    return str(rank.get("rank")), str(rank.get("host")), size, ago


def _clock(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _row(model: Mapping[str, Any]) -> tuple[str, str, str, str]:
    from ..cache.sizes import format_size

    state = "in memory" if model.get("loaded") else "not in memory"
    weights, cache = (format_size(int(model.get(name, 0))) for name in ("weights", "cache"))
    return str(model.get("model")) or "unnamed", weights, cache, state
