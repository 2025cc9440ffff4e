"""Command lines read from typed functions by typer, with errors in one line.

Beside typer's own types, an option can be a comma-separated list (`Names`, `Numbers`), and `with_options_of` turns the
fields of a pydantic model into options, so that each is declared once.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError

from pipeline.core.errors import InputError
from pipeline.core.failures import BAD_INPUT, report

PLAIN: Mapping[str, Any] = {
    "rich_markup_mode": None,  # plain text reads the same in a terminal, a log and a pipe
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
"""Arguments of `typer.Typer`."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


class Names(tuple[str, ...]):
    """Comma-separated names."""

    @classmethod
    def parse(cls, text: "str | Names") -> "Names":
        """``"a, b"`` to ``("a", "b")``."""
        return text if isinstance(text, Names) else cls(name.strip() for name in text.split(",") if name.strip())


class Numbers(tuple[int, ...]):
    """Comma-separated whole numbers."""

    @classmethod
    def parse(cls, text: "str | Numbers") -> "Numbers":
        """``"1,32"`` to ``(1, 32)``.

        Raises:
            BadParameter: A part is not a whole number.
        """
        try:
            return text if isinstance(text, Numbers) else cls(int(number) for number in text.split(",") if number)
        except ValueError:
            raise typer.BadParameter(f"expected comma-separated whole numbers, not {text!r}") from None


def names(help_: str, **options: Any) -> Any:
    """An option of type `Names`."""
    return typer.Option(parser=Names.parse, metavar="A,B", help=help_, **options)


def numbers(help_: str, **options: Any) -> Any:
    """An option of type `Numbers`."""
    return typer.Option(parser=Numbers.parse, metavar="N,N", help=help_, **options)


def with_options_of(model: type[BaseModel], argument: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command so that its parameter ``argument``, a ``model``, becomes one option for each field.

    The field's description is the option's help, its default the option's.

    Raises:
        InputError: When the command runs: a value breaks the model's rules; the text names the option.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(**arguments: Any) -> Any:
            fields = {name: arguments.pop(name) for name in model.model_fields}
            return command(**arguments, **{argument: _checked(model, fields)})

        parameters = inspect.signature(command).parameters.values()
        own = [parameter for parameter in parameters if parameter.name != argument]
        run.__signature__ = inspect.Signature([*own, *_options(model)])  # type: ignore[attr-defined]
        return run

    return decorate


def _options(model: type[BaseModel]) -> list[inspect.Parameter]:
    options = []
    for name, field in model.model_fields.items():
        text = " ".join((field.description or "").split())
        kind, default = field.annotation, inspect.Parameter.empty if field.is_required() else field.default
        option = typer.Option(help=text)
        if get_origin(kind) is tuple:  # typer reads tuples as options of several values
            kind, listed = (Numbers, numbers) if _of_numbers(kind) else (Names, names)
            option, default = listed(text), kind(default) if isinstance(default, tuple) else default
        annotation: Any = Annotated[kind, option]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    return options


def _of_numbers(kind: Any) -> bool:
    element = get_args(kind)[0]
    return (get_args(element) or (element,))[0] is int


def _checked(model: type[BaseModel], fields: Mapping[str, Any]) -> BaseModel:
    plain = {name: tuple(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        faults = [_fault(str(fault["loc"][0]), fields, fault["msg"]) for fault in error.errors()]
        raise InputError(f"{'; '.join(faults)}.") from None


def _fault(name: str, fields: Mapping[str, Any], message: str) -> str:
    value = fields[name]
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"--{name.replace('_', '-')} {text!r}: {message[0].lower()}{message[1:]}"


def run(app: typer.Typer, arguments: Sequence[str] | None, program: str) -> int:
    """Run a command line.

    Returns:
        The exit code of the command, or `BAD_INPUT` for arguments it does not take.
    """
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name=program, standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())  # noqa: T201
            return BAD_INPUT
        command = context.command_path if context is not None else program
        return report(f"{error.format_message()} See `{command} --help`.", BAD_INPUT)
    return code if isinstance(code, int) else 0
