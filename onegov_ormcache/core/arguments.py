"""Arguments of creators: how a call is brought into one form, and which texts tell calls apart.

This module knows the parameters of functions. It does not know what a creator computes, nor where
its values are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from ..errors import ArgumentError, PropertyError, VariantError
from .variants import key_text, shown

#: No keyword arguments.
NO_KEYWORDS: Mapping[str, Any] = MappingProxyType({})

#: A function of the instance and a list of items, which returns the values by item.
Many: TypeAlias = Callable[[Any, list[Any]], Mapping[Any, Any]]


class Arguments(NamedTuple):
    """The arguments of one call, beside the instance: each parameter has its value."""

    #: Those that are given by position, then those that are given by keyword alone.
    values: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = NO_KEYWORDS

    @property
    def positional(self) -> tuple[Any, ...]:
        """Those that are given by position."""
        return self.values[: len(self.values) - len(self.keywords)]


#: The arguments of a property, whose creator has no parameters beside the instance.
NO_ARGUMENTS = Arguments()


class Parameters:
    """The parameters of a creator beside the instance; made when the property is declared.

    :param creator: the creator.
    :param where: the property, with its file and line, for messages.
    :raises PropertyError: if the creator can't be called with the instance, or takes any number of
        arguments.
    """

    def __init__(self, creator: Callable[..., Any], where: str) -> None:
        self._where = where
        self._signature = inspect.Signature()
        # the number of arguments that need no defaults and no names
        self._number = 0
        try:
            signature = inspect.signature(creator)
        except ValueError:
            return  # a builtin function that has no signature
        found = list(signature.parameters.values())
        if not found or found[0].kind is Parameter.KEYWORD_ONLY:
            raise PropertyError(
                f'{where}: a creator is called with the instance (an app, a request) as its first '
                'argument, and this one takes none'
            )
        for parameter in found:
            if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                raise PropertyError(
                    f'{where}: the creator takes any number of arguments ({parameter}); name each '
                    'parameter, so that equal calls have equal arguments'
                )
        self._signature = signature.replace(parameters=found[1:])
        by_position = all(p.kind is not Parameter.KEYWORD_ONLY for p in found[1:])
        self._number = len(found) - 1 if by_position else -1

    def __bool__(self) -> bool:
        return self._number != 0

    def __str__(self) -> str:
        return str(self._signature.replace(return_annotation=inspect.Signature.empty))

    @property
    def names(self) -> Sequence[str]:
        """The names of the parameters, in the order of :attr:`Arguments.values`."""
        return list(self._signature.parameters)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """Return the arguments of a call.

        :raises ArgumentError: if they do not fit the parameters.
        """
        if not kwargs and len(args) == self._number:
            return Arguments(tuple(args)) if args else NO_ARGUMENTS
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f'{self._where} is called as {self}: {error}') from None
        bound.apply_defaults()
        return Arguments((*bound.args, *bound.kwargs.values()), bound.kwargs or NO_KEYWORDS)

    def of_item(self, item: Any) -> Arguments:
        """Return the arguments of one item of ``many``: a value for the only parameter, or a tuple
        of values for several parameters.

        :raises ArgumentError: if they do not fit the parameters.
        """
        is_tuple = isinstance(item, tuple) and len(self._signature.parameters) > 1
        return self.bind(item if is_tuple else (item,), {})

    def text(self, arguments: Arguments) -> str:
        """Return a text that tells these arguments from all others, the same in each process.

        :raises ArgumentError: if one of them can't be part of a key.
        """
        try:
            return f'({",".join([key_text(value, "an argument") for value in arguments.values])})'
        except VariantError as error:
            raise ArgumentError(
                f'{self._where} is called with {shown(arguments.values)}; {error}'
            ) from None


def listed(items: Iterable[Any], where: str) -> list[Any]:
    """Return the items of ``many`` as a list.

    :param where: the property, with its file and line, for the message.
    :raises ArgumentError: if they can't be iterated over.
    """
    try:
        iterator = iter(items)
    except TypeError:
        raise ArgumentError(
            f'{where}: expected an iterable of items, and not {shown(items)}'
        ) from None
    return list(iterator)


def takes_more(creator: Callable[..., Any]) -> bool:
    """Return whether a function has parameters beside its first one."""
    try:
        return len(inspect.signature(creator).parameters) > 1
    except (ValueError, TypeError):
        return False


def number_of_parameters(creator: Callable[..., Any]) -> int:
    """Return the number of parameters that a function can be given by position."""
    kinds = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD
    try:
        parameters = inspect.signature(creator).parameters.values()
    except ValueError:
        return 0
    return sum(parameter.kind in kinds for parameter in parameters)


def check_creator(creator: Callable[..., Any], where: str) -> None:
    """Raise :class:`PropertyError` if a creator is no function, or a coroutine or generator
    function.

    :param where: the property, with its file and line, for the message.
    """
    if not callable(creator):
        raise PropertyError(f'{where}: {creator!r} is no function')
    if inspect.iscoroutinefunction(creator) or inspect.isgeneratorfunction(creator):
        raise PropertyError(f'{where}: a creator returns its value; it can not await or yield')


def check_many(many: Many | None, parameters: Parameters, where: str) -> None:
    """Raise :class:`PropertyError` if a function can't compute several values of a property.

    :param where: the property, with its file and line, for the message.
    """
    if many is None:
        return
    if not (callable(many) and number_of_parameters(many) == 2):
        raise PropertyError(
            f'{where}: many={many!r}; expected a function of the instance and a list of items'
        )
    if not parameters:
        raise PropertyError(f'{where}: many is for creators that take arguments')
