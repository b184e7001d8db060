"""`llm mlx-cached serve`: a model over several machines, under a name that llm knows."""

from __future__ import annotations

import socket
import sys
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from ..config import (
    MODEL_ID,
    RegisteredModel,
    ServedOver,
    Settings,
    change_settings,
    load_settings,
    parse_keep,
)
from ..models.names import NamedModel, resolve
from ..models.references import SERVED, divided, served_name
from .add import checked_name, last_part
from .shown import json_option, show_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..host.child import HostChild
    from ..host.frames import Channel
    from ..host.place import Place
    from ..machines.orders import GroupPlan, LeadOrder

_LEAD: Final = "llm_mlx_promptcache.machines.lead_main"
# The user's keys for ssh: a host is given no other variable of the user's than it needs.
_FOR_SSH: Final = ("SSH_AUTH_SOCK",)
_STOP: Final = "llm mlx-cached stop"
# Rank 0 may wait for another machine's slower disk: the ranks watch how long each of them loads.
_LOADING: Final = 3600.0
# Another `serve` holds the name until its rank 0 answers, or has not in so many seconds.
_NAMED: Final = 30.0


@click.command()
@click.argument("model")
@click.option(
    "--hosts",
    required=True,
    type=click.Path(path_type=Path),
    help="The hostfile, as mlx.distributed_config writes it; its first host is this machine.",
)
@click.option(
    "--split",
    type=click.Choice(("tensor", "pipeline")),
    default="tensor",
    show_default=True,
    help="Split each layer, or give each machine some of the layers.",
)
@click.option(
    "--backend",
    type=click.Choice(("ring", "jaccl")),
    help="TCP, or RDMA over Thunderbolt; default: what the hostfile names, else ring.",
)
@click.option("--name", help="Its name; default: the last part of the model's name.")
@click.option("--keep", help="End it when it has been idle this long: 30m; default: it stays.")
@click.option("--python", help="Python on the other machines; default: its path here.")
@click.option("--address", help="Where the others reach this machine; default: its first address.")
@click.option(
    "--port",
    type=click.IntRange(1024, 65000),
    default=32323,
    show_default=True,
    help="The first port that MLX listens on, on other machines.",
)
@json_option
def serve(*, model: str, hosts: Path, as_json: bool, **said: Any) -> None:
    """Serve a model over several machines as mlx-cached/NAME; stop ends it.

    It returns once each machine has its part in memory. The others are started over ssh, without a
    question; Python, this package and the model must be there already.
    """
    named = _checked(resolve(model))
    name = _name(said["name"], named)
    plan = _plan(named, hosts, said)
    order = _order(name, plan, said)
    over = {"split": plan.split, "backend": plan.backend.value}
    served = ServedOver(model=named.reference, hosts=str(hosts.expanduser().absolute()), **over)
    begun = _begun(name, served, order)
    try:
        _wait(begun.channel, begun.place, name)
    except BaseException:
        begun.take_back()
        raise
    _show(name, plan, as_json=as_json)


def _checked(named: NamedModel) -> NamedModel:
    """The model, if it can be cut at all; ValueError."""
    if name := served_name(named.reference):
        raise ValueError(f"{MODEL_ID}/{name} is served already; give the model that it is")
    base, adapter = divided(named.reference)
    if adapter:
        raise ValueError(
            f"{adapter} is an adapter, and adapters are not cut for several machines; fuse it into"
            f" {base} (mlx_lm.fuse) and serve that"
        )
    return named


def _name(given: str | None, named: NamedModel) -> str:
    """The model's name; ValueError if another model has it."""
    name = checked_name(given or last_part(named.reference))
    if "@" in name or "/" in name:
        raise ValueError(
            f"{name!r} is no name for a model that is served; give one without @ and /"
        )
    _check_own(load_settings(), name)
    return name


def _check_own(settings: Settings, name: str) -> None:
    model = settings.model(name)
    if model is not None and model.served is None:
        raise ValueError(f"{MODEL_ID}/{model.name} is another model; give another name with --name")


def _plan(named: NamedModel, hosts: Path, said: Mapping[str, Any]) -> GroupPlan:
    from ..engine.group import Backend
    from ..machines.hostfile import fitting_backend, read_hostfile
    from ..machines.orders import GroupPlan

    path = hosts.expanduser()
    found = read_hostfile(path)
    asked = None if said["backend"] is None else Backend(said["backend"])
    return GroupPlan(named.reference, found, said["split"], fitting_backend(found, asked))


def _order(name: str, plan: GroupPlan, said: Mapping[str, Any]) -> LeadOrder:
    from ..machines.orders import LeadOrder

    first = plan.hosts.machines[0]
    address = said["address"] or (first.ips[0] if first.ips else "127.0.0.1")
    if not _is_ours(address):
        raise ValueError(f"{address} is no address of this machine; {_instead(said, first.ssh)}")
    keep = None if said["keep"] is None else parse_keep(said["keep"], "--keep")
    if keep == 0:
        raise ValueError("--keep is 0, and a model that is served stays at least a moment; give 5m")
    return LeadOrder(name, plan, said["python"] or sys.executable, said["port"], address, keep)


def _instead(said: Mapping[str, Any], first: str) -> str:
    """The address to give, or the machine to type it on."""
    if said["address"]:
        return "with --address give the one where the others reach it"
    return (
        f"rank 0 runs where this is typed: type it on {first}, or put this machine first into the"
        " hostfile"
    )


def _is_ours(address: str) -> bool:
    """True for one address of this machine, and not for all of them."""
    with socket.socket() as sock, suppress(OSError):
        sock.bind((address, 0))
        return bool(sock.getsockname()[0] != "0.0.0.0")  # noqa: S104 - it is refused
    return False


class _StartedGroup(NamedTuple):
    """A group that this command has started, and the meaning of its name before."""

    place: Place
    channel: Channel
    child: HostChild
    name: str
    before: ServedOver | None

    def take_back(self) -> None:
        """End it: it is no use to anybody. Whoever has taken the name meanwhile keeps it."""
        from ..host.start import HostPresent, check_absent, starting_alone

        self.channel.close()
        self.child.terminate()
        with _told_if_kept(self.name), starting_alone(self.place):
            try:
                check_absent(self.place)
            except HostPresent as error:
                if error.pid != self.child.pid:
                    return
            _register(self.name, self.before)


@contextmanager
def _told_if_kept(name: str) -> Iterator[None]:
    """Tell what keeps a name from being taken back; it hides no reason that is raised."""
    from ..host.place import HostUnavailable

    try:
        yield
    except (HostUnavailable, ValueError, OSError) as error:
        click.echo(
            f"{MODEL_ID}/{name} stays a name ({error}); llm mlx-cached remove {quote(name)}"
            " forgets it",
            err=True,
        )


def _begun(name: str, served: ServedOver, order: LeadOrder) -> _StartedGroup:
    """Rank 0, started under a name that nobody else serves; ClickException."""
    from ..host.child import Program, host_command
    from ..host.place import HostUnavailable, host_place
    from ..host.start import HostPresent, Waits, check_absent, start_new, starting_alone
    from ..machines.orders import order_to_line

    program = Program(host_command(_LEAD), order_to_line(order), _FOR_SSH)
    try:
        place = host_place(name)
        with starting_alone(place, Waits(lock=_NAMED)):
            check_absent(place)
            known = load_settings().model(name)
            before = None if known is None else known.served
            # First: whatever becomes of this process, `ps` shows what it started, `stop` ends it.
            _register(name, served)
            try:
                return _StartedGroup(place, *start_new(place, program), name, before)
            except BaseException:
                with _told_if_kept(name):
                    _register(name, before)
                raise
    except HostPresent as error:
        raise click.ClickException(
            f"{MODEL_ID}/{name} is served already (process {error.pid}); {_STOP} {quote(name)}"
            " ends it"
        ) from error
    except HostUnavailable as error:
        raise click.ClickException(str(error)) from error


def _wait(channel: Channel, place: Place, name: str) -> None:
    """Wait until rank 0, which starts the others, and all of those have the model."""
    from ..engine.events import Loading
    from ..host.exchange import ConnectionLost, Patience, answer
    from ..host.served import why_ended
    from ..models.progress import ProgressLine

    patience = Patience(loading=_LOADING)
    try:
        with closing(channel), ProgressLine() as line:
            for event in answer(channel, _load(name), patience, patience.loading):
                if isinstance(event, Loading):
                    line(event.stage, event.done, event.total)
    except ConnectionLost as error:
        why = why_ended(place)
        raise click.ClickException(f"{error}{why and f' ({why})'}") from error
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error


def _load(name: str) -> Mapping[str, Any]:
    """An ask that computes nothing, and needs the model in memory."""
    from ..chat.messages import Message
    from ..engine import wire
    from ..engine.request import GenerationRequest

    request = GenerationRequest((Message("user", "."),), look=True)
    return {"ask": "generate", "model": f"{SERVED}{name}", "request": wire.to_json(request)}


def _register(name: str, served: ServedOver | None) -> None:
    """Have the name stand for what is served over these machines; for nothing without them."""

    def with_it(settings: Settings) -> Settings:
        _check_own(settings, name)
        before = settings.model(name)
        others = tuple(model for model in settings.models if model != before)
        if served is None:
            return settings.changed(models=others)
        aliases = () if before is None else before.aliases
        made = RegisteredModel(
            name=name, reference=f"{SERVED}{name}", aliases=aliases, served=served
        )
        return settings.changed(models=(*others, made))

    change_settings(with_it)


def _show(name: str, plan: GroupPlan, *, as_json: bool) -> None:
    hosts = [machine.ssh for machine in plan.hosts.machines]
    if as_json:
        show_json(
            {
                "model": f"{MODEL_ID}/{name}",
                "reference": plan.model,
                "split": plan.split,
                "backend": plan.backend.value,
                "hosts": hosts,
            }
        )
        return
    click.echo(
        f"{MODEL_ID}/{name} is served by {len(hosts)} ranks ({plan.split}, {plan.backend.value}):"
        f" {', '.join(hosts)}; {_STOP} {quote(name)} ends it"
    )
