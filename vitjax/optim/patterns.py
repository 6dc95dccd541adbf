"""Parameter names and the lists of (regex, value) that a config assigns to them."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from vitjax import errors

CATCH_ALL = ".*"


def parameter_names(params: Any) -> Any:
    """Returns a tree of the structure of `params` whose leaves are the names `a/b/c`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )


def first_match(names: Sequence[str], rules: Any, *, key: str, must_match: bool = True) -> dict[str, int]:
    """Returns for each name the index of the first rule whose regex matches it as a whole.

    Names that no rule matches are left out.

    Args:
      names: parameter names, `a/b/c`.
      rules: a sequence of pairs (regex, value).
      key: the config key of the rules, for error messages.
      must_match: refuse rules that decide about no parameter. A catch-all `.*` may be left without work.

    Raises:
      UserError: not a list of pairs; a pattern that starts with a slash, is no regex, matches nothing, or
        stands behind others that match all it could.
    """
    compiled = [_compile(pattern, key) for pattern, _ in pairs(rules, key)]
    found = {
        name: hits[0] for name in names if (hits := [i for i, r in enumerate(compiled) if r.fullmatch(name)])
    }
    if must_match:
        for i, regex in enumerate(compiled):
            if i not in found.values() and regex.pattern != CATCH_ALL:
                raise errors.UserError(_explain_idle(regex, i, names, key))
    return found


def pairs(rules: Any, key: str) -> list[tuple[str, Any]]:
    """Returns `rules` as a list of (regex, value), or raises."""
    is_list = isinstance(rules, Iterable) and not isinstance(rules, str | dict)
    rules = list(rules) if is_list else []
    if not is_list or not all(
        isinstance(r, list | tuple) and len(r) == 2 and isinstance(r[0], str) for r in rules
    ):
        raise errors.UserError(f"{key} must be a list of pairs (regex, value), such as (('head/.*', 10.0),).")
    return [(pattern, value) for pattern, value in rules]


def _compile(pattern: str, key: str) -> re.Pattern[str]:
    if pattern.startswith("/"):
        raise errors.UserError(
            f"{key}: parameter names never start with a slash; write {pattern.lstrip('/')!r}."
        )
    try:
        return re.compile(pattern)
    except re.error as e:
        raise errors.UserError(f"{key}: {pattern!r} is not a regular expression: {e}.") from e


def _explain_idle(regex: re.Pattern[str], index: int, names: Sequence[str], key: str) -> str:
    """Says why a pattern decides about no parameter, with the nearest remedy."""
    if any(regex.fullmatch(name) for name in names):
        return (
            f"{key}: {regex.pattern!r} (entry {index}) has no effect, because the first match wins and"
            " earlier patterns take every parameter that it matches; move it up."
        )
    inside = [name for name in names if regex.search(name)]
    if inside:
        wider = f".*{regex.pattern}.*"
        hint = f" A pattern must match the whole name; {wider!r} would match {inside[0]!r}."
    else:
        literal = re.sub(r"\\[a-zA-Z]|[.*+?^$()\[\]{}|\\]", "", regex.pattern)
        hint = errors.nearest(literal, names) or f" Parameters are named like {', '.join(names[:2])}."
    return f"{key}: {regex.pattern!r} matches no parameter.{hint}"
