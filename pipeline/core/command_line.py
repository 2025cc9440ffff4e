"""Command lines built from typed functions with typer, with one-line errors.

In addition to typer's types, an option can be a comma-separated list (`Names`, `Numbers`), and `with_options_of` turns
the fields of a pydantic model into options, so that each is declared once.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError

from pipeline.core.errors import InputError
from pipeline.core.failures import BAD_INPUT, report
from pipeline.core.log_files import set_debug

PLAIN: Mapping[str, Any] = {
    "rich_markup_mode": None,  # same plain text in a terminal, a log and a pipe
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
"""Keyword arguments of `typer.Typer` for plain-text output."""
_DEBUG = "--debug"
DEBUG_OPTION = typer.Option(
    _DEBUG, help="Print tracebacks and the tools' output here, not to .logs/.", callback=set_debug, is_eager=True
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


class Names(tuple[str, ...]):
    """Comma-separated names."""

    @classmethod
    def parse(cls, text: "str | Names") -> "Names":
        """Parse ``"a, b"`` to ``("a", "b")``."""
        return text if isinstance(text, Names) else cls(name.strip() for name in text.split(",") if name.strip())


class Numbers(tuple[int, ...]):
    """Comma-separated whole numbers."""

    @classmethod
    def parse(cls, text: "str | Numbers") -> "Numbers":
        """Parse ``"1,32"`` to ``(1, 32)``.

        Raises:
            BadParameter: A part is not a whole number.
        """
        try:
            return text if isinstance(text, Numbers) else cls(int(number) for number in text.split(",") if number)
        except ValueError:
            raise typer.BadParameter(f"expected comma-separated whole numbers, not {text!r}") from None


def names(help_: str, **options: Any) -> Any:
    """Declare an option of type `Names`."""
    return typer.Option(parser=Names.parse, metavar="A,B", help=help_, **options)


def numbers(help_: str, **options: Any) -> Any:
    """Declare an option of type `Numbers`."""
    return typer.Option(parser=Numbers.parse, metavar="N,N", help=help_, **options)


def with_options_of(model: type[BaseModel], argument: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replace a command's parameter ``argument``, a ``model``, with one option per field.

    Each option takes its help and default from the field.

    Raises:
        InputError: A value is invalid; raised when the command runs, and names the option.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(**arguments: Any) -> Any:
            fields = {name: arguments.pop(name) for name in model.model_fields}
            return command(**arguments, **{argument: _checked(model, fields)})

        parameters = inspect.signature(command).parameters.values()
        other_parameters = [parameter for parameter in parameters if parameter.name != argument]
        run.__signature__ = inspect.Signature([*other_parameters, *_options(model)])  # type: ignore[attr-defined]
        return run

    return decorate


def _options(model: type[BaseModel]) -> list[inspect.Parameter]:
    options = []
    for name, field in model.model_fields.items():
        text = " ".join((field.description or "").split())
        kind, default = field.annotation, inspect.Parameter.empty if field.is_required() else field.default
        option = typer.Option(help=text)
        if get_origin(kind) is tuple:  # typer would read a tuple as an option with several values
            kind, list_option = (Numbers, numbers) if _is_integer_tuple(kind) else (Names, names)
            option, default = list_option(text), kind(default) if isinstance(default, tuple) else default
        annotation: Any = Annotated[kind, option]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    return options


def _is_integer_tuple(kind: Any) -> bool:
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
        The exit code of the command, or `BAD_INPUT` for invalid arguments.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    if _DEBUG in options:  # accepted after a command's name as well as before it
        set_debug(True)
        words = [word for word in options if word != _DEBUG] + words[len(options) :]
    try:
        code = app(args=words, prog_name=program, standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())  # noqa: T201
            return BAD_INPUT
        command = context.command_path if context is not None else program
        return report(f"{error.format_message()} See `{command} --help`.", BAD_INPUT)
    return code if isinstance(code, int) else 0
