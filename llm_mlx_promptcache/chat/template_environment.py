"""Jinja for untrusted templates: sandboxed, and bounded in work and memory.

Every block that is entered, every text that is made and every value that is walked through is
counted (`template_work`), so a loop ends by a count and not by a clock. Otherwise templates render
as in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType
from typing import Any, NoReturn

import jinja2.ext
import jinja2.nodes
from jinja2 import TemplateError as JinjaError
from jinja2 import pass_context
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, generate_lorem_ipsum

from .template_filters import compared, measured, measured_test, sought
from .template_work import LEAST, NODE, Work, spelled_widths

_STEP = "one step "  # a filter's name that no template can write
_BODIES = frozenset({"body", "else_"})
_WITHIN = frozenset({"in", "notin"})


class _Code(CodeGenerator):
    """Jinja's compiler, with the counting written between its lines."""

    def blockvisit(self, nodes: Iterable[jinja2.nodes.Node], frame: Frame) -> None:
        nodes = list(nodes)
        self.writeline(f"environment.spend({NODE // 4 * (1 + sum(map(_steps, nodes)))})")
        super().blockvisit(nodes, frame)

    def buffer(self, frame: Frame) -> None:
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.buffered()")

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Frame) -> None:
        joins = "markup_join" if frame.eval_ctx.autoescape else "str_join"
        if frame.eval_ctx.volatile:
            joins = "(markup_join if context.eval_ctx.volatile else str_join)"
        self.write(f"{joins}(environment.shown((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write(")))")

    def visit_Getitem(self, node: jinja2.nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, jinja2.nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self._within("result", node.node, frame, "[")
        self.visit(node.arg, frame)
        self.write("])")

    def visit_Compare(self, node: jinja2.nodes.Compare, frame: Frame) -> None:
        self.write("(")
        held = node.ops[0].op in _WITHIN and not _is_plain(node.ops[0].expr)
        self._compared(node.expr, frame, counted=held)
        for op in node.ops:
            self.write(f" {operators[op.op]} ")
            self._compared(op.expr, frame, "sought" if op.op in _WITHIN else "compared")
        self.write(")")

    def visit_Dict(self, node: jinja2.nodes.Dict, frame: Frame) -> None:
        self.write("{")
        for item in node.items:
            self._compared(item.key, frame)
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("}")

    def _compared(
        self,
        node: jinja2.nodes.Expr,
        frame: Frame,
        how: str = "compared",
        *,
        counted: bool = True,
    ) -> None:
        if counted and not _is_plain(node):
            self._within(how, node, frame, ")")
        else:
            self.visit(node, frame)

    def _within(self, name: str, node: jinja2.nodes.Expr, frame: Frame, end: str) -> None:
        self.write(f"environment.{name}(")
        self.visit(node, frame)
        self.write(end)


def _steps(node: jinja2.nodes.Node) -> int:
    """The number of nodes that run with this one, without those of blocks inside it."""
    inner = node.iter_child_nodes(exclude=_BODIES)
    return 1 + sum(map(_steps, inner))


def _is_plain(node: jinja2.nodes.Expr) -> bool:
    """True if comparing with it costs no more than the template is long."""
    if isinstance(node, jinja2.nodes.List | jinja2.nodes.Tuple):
        return all(isinstance(item, jinja2.nodes.Const) for item in node.items)
    return isinstance(node, jinja2.nodes.Const)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks text that a model is trained on and shows nothing."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Its body, as a block of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        shown = self.call_method("_shown")
        return jinja2.nodes.CallBlock(shown, [], [], body).set_lineno(line)

    def _shown(self, caller: Macro) -> str:
        return str(caller())


class _Variables(Namespace):
    """A template's `namespace()`: shown by its name alone, and closed to Python's own names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace can't hold {name!r}")


class _Tables:
    """`dict` without the class's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """As Python's."""
        return dict.fromkeys(*args, **kwargs)


class _Formatter(SandboxedFormatter):
    """`str.format` whose widths are counted before anything is padded."""

    _env: BoundedEnvironment

    def format_field(self, value: Any, form: str) -> str:
        """One value in its form."""
        self._env.spend(4 * self._env.work.weigh(value) + len(form) + spelled_widths(form))
        return str(super().format_field(value, form))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """One value as `!r` or `!s` shows it."""
        self._env.spend(4 * self._env.work.weigh(value))
        return super().convert_field(value, conversion)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment of chat templates, counting; for one rendering at a time."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=self._finalized,
        )
        self.work = Work(LEAST)
        self.filters["tojson"] = _to_json

        def meter() -> Work:
            return self.work

        self.filters = {name: measured(meter, name, f) for name, f in self.filters.items()}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: measured_test(meter, name, f) for name, f in tests.items()}
        self.filters[_STEP] = _step
        self.globals |= {
            "raise_exception": _raise,
            "dict": _Tables(),
            "namespace": _Variables,
            "lipsum": self._filler,
        }

    def spend(self, units: int) -> None:
        """Count so much work; TooMuchWork if there is none left."""
        self.work.spend(units)

    def buffered(self) -> list[str]:
        """The list in which a macro or a block collects its text."""
        return _Buffer(self)

    def shown(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Values that are about to be joined as texts."""
        self.work.spend(sum(self._as_text(value) for value in values))
        return values

    def result(self, value: Any) -> Any:
        """The result of a slice, counted."""
        return self.work.result(value)

    def compared(self, value: Any) -> Any:
        """A value that is about to be compared, or searched for."""
        self.work.spend(compared(self.work, value))
        return value

    def sought(self, value: Any) -> Any:
        """A value in which something is about to be searched for."""
        self.work.spend(sought(self.work, value))
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An entry; a key that is no text or number is counted."""
        if type(argument) is not str and type(argument) is not int:
            self.work.spend(self.work.weigh(argument))
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator's result, counted before it is made."""
        self.work.operate(operator, left, right)
        return self.binop_table[operator](left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call's result, counted; macros count as they run."""
        work = __self.work
        kind = type(__obj)
        if kind is not Macro:
            given = (*args, *(kwargs[name] for name in kwargs if name[:1] != "_"))
            if kind is BuiltinFunctionType:
                given = tuple(list(a) if isinstance(a, Iterator) else a for a in given)
                args = tuple(given[: len(args)])
                work.call_method(__obj.__name__, __obj.__self__, given)
            elif isinstance(on := getattr(__obj, "__self__", None), str):  # text marked as safe
                work.call_method(__obj.__name__, on, given)
            else:
                work.spend(NODE + sum(work.weigh(one) for one in given))
        else:
            work.spend(NODE * (len(args) + len(kwargs)))
        return work.result(
            ImmutableSandboxedEnvironment.call(__self, __context, __obj, *args, **kwargs)
        )

    def wrap_str_format(self, value: Any) -> Any:
        """`str.format` with counted widths; None for anything else."""
        plain = super().wrap_str_format(value)
        if plain is None:
            return None
        text, mapped = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            self.spend(len(text))
            if mapped:
                return str(_Formatter(self).vformat(text, (), args[0]))
            return str(_Formatter(self).vformat(text, args, kwargs))

        return formatted

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        made = super()._parse(source, name, filename)
        for loop in made.find_all(jinja2.nodes.For):
            if loop.test is not None:
                # Items that a loop's own test rejects never come to its body.
                always = jinja2.nodes.Const(True)  # noqa: FBT003 - Jinja's signature
                step = jinja2.nodes.Filter(always, _STEP, [], [], None, None)
                loop.test = jinja2.nodes.And(step, loop.test).set_lineno(loop.lineno)
                step.set_environment(self)
                loop.test.set_environment(self)
        return made

    def _finalized(self, value: Any) -> Any:
        self.work.spend(self._as_text(value))
        return value

    def _as_text(self, value: Any) -> int:
        return len(value) if type(value) is str else 4 * self.work.weigh(value)

    def _filler(self, n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:  # noqa: FBT001, FBT002 - Jinja's signature
        self.work.spend(16 * abs(n) * (1 + abs(min) + abs(max)))
        return generate_lorem_ipsum(n, html, min, max)


class _Buffer(list[str]):
    """Pieces of text, each counted."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        super().__init__()
        self._work = environment.work

    def append(self, piece: str) -> None:
        self._work.spend(NODE // 4 + len(piece))
        super().append(piece)

    def extend(self, pieces: Iterable[str]) -> None:
        for piece in pieces:
            self.append(piece)


@pass_context
def _step(context: Context, value: object) -> object:
    context.environment.spend(NODE)  # type: ignore[attr-defined]
    return value


def _raise(message: object) -> NoReturn:
    raise JinjaError(str(message))


def _to_json(
    x: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates may give it by position
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - so too
) -> str:
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def pieces_of(
    environment: BoundedEnvironment, template: jinja2.Template, values: Any
) -> Iterator[str]:
    """A template's text as it is made, each piece counted."""
    context = template.new_context(values)
    for piece in template.root_render_func(context):
        environment.spend(NODE // 4 + len(piece))
        yield piece
