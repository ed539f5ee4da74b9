"""What a statement may leave behind in its session, told by its text alone.

A round trip for a reset after each use would cost as much as the query itself. So the statements
are read: one is taken to leave nothing only if it is made of nothing but what is known to leave
nothing. Whatever is not understood counts as leaving something, which costs a round trip and no
more. The verdict on a text is remembered, so reading it costs one look into a dict.

What the text does not show is assumed not to be there: a trigger, a view, a default, an operator
or a policy whose function changes the session beyond its transaction, or such a function with the
name of a known one. The number that a serial column has given is told by `lastval()` until a reset.
"""

from __future__ import annotations

import re
from enum import IntEnum


class Effect(IntEnum):
    """What a session needs before somebody else gets it; the larger one wins."""

    NONE = 0
    RESET = 1
    CLOSE = 2


_REMEMBERED = 4096
_LONGEST = 20_000  # of longer texts, such as bulk inserts, not the verdict but only "reset" is told

# Comments, and texts that are data: dropped before the words are read. Quoted names are kept, but
# must be seen here, for what looks like a comment or a text in them is none. A name may end in
# `e` or have `$` in it: neither begins a text then. PostgreSQL's lexer (scan.l) ends a line at a
# carriage return, too, takes every character that is not of ASCII for a letter, and reads a text
# that goes on in another line as it has begun.
_DATA = re.compile(
    r"""
      --[^\n\r]*
    | /\*.*?\*/
    | (?<![\w$\x80-\U0010ffff])\$(?P<tag>(?:[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*)?)\$
      .*? \$(?P=tag)\$
    | (?<![\w$\x80-\U0010ffff])[eE]'(?:[^'\\]|\\.|'')*'
      (?:(?:\s|--[^\n\r]*)*'(?:[^'\\]|\\.|'')*')*
    | '(?:[^']|'')*'
    | (?P<name>"(?:[^"]|"")*")
    """,
    re.VERBOSE | re.DOTALL,
)
_WORD = re.compile(
    r"""
      "(?:[^"]|"")*"
    | [A-Za-z_\x80-\U0010ffff][A-Za-z_0-9$\x80-\U0010ffff]*
    | [0-9][0-9A-Za-z_.]*
    | \S
    """,
    re.VERBOSE,
)
# Comments inside of comments, and names in which characters are written as numbers: not read.
_OBSCURE = re.compile(r"""/\*(?:(?!\*/).)*/\*|(?<![\w$])[uU]&["']""", re.DOTALL)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PLAIN = _words(
    """
    select values table with insert update delete merge explain begin start commit end
    rollback abort savepoint release show copy create drop alter truncate grant revoke
    comment vacuum analyze reindex cluster lock notify refresh import security
    """
)
# Words that PostgreSQL keeps from being names of functions.
_SYNTAX = _words(
    """
    in values exists and or not any all some on using as from where union select intersect
    except when then else case row array distinct limit offset check references unique
    grouping with returning table lateral foreign having to varchar char character numeric
    decimal bit timestamp time interval float precision column into default group order
    """
)
# Words that could be such names, but are not where they come after one of these.
_SYNTAX_AFTER = {
    "by": ("partition", "group", "order"),
    "key": ("primary", "foreign"),
    "over": (")",),
    "filter": (")",),
    "materialized": ("as", "not"),
    "sets": ("grouping",),
    "conflict": ("on",),
    "varying": ("character", "bit"),
}
# Functions of PostgreSQL that change nothing outside of their transaction.
_FUNCTIONS = _words(
    """
    count sum avg min max now coalesce nullif greatest least lower upper length char_length
    trim ltrim rtrim btrim substring substr position replace concat concat_ws format left
    right lpad rpad split_part string_agg array_agg json_agg jsonb_agg json_object_agg
    jsonb_object_agg json_build_object jsonb_build_object json_build_array jsonb_build_array
    to_json to_jsonb row_to_json jsonb_set jsonb_array_elements jsonb_array_elements_text
    json_array_elements jsonb_each jsonb_each_text jsonb_object_keys unnest array_length
    cardinality array_append array_position array_remove generate_series abs ceil ceiling
    floor round trunc mod power sqrt exp ln log random sign date_trunc date_part extract age
    to_char to_date to_timestamp to_number make_date make_interval clock_timestamp
    statement_timestamp transaction_timestamp cast row_number rank dense_rank ntile lag lead
    first_value last_value bool_and bool_or every md5 encode decode sha256 gen_random_uuid
    regexp_replace regexp_match regexp_matches strpos starts_with reverse repeat initcap
    ascii chr pg_sleep version current_setting current_database current_schema
    pg_backend_pid pg_typeof to_tsvector to_tsquery plainto_tsquery websearch_to_tsquery
    ts_rank ts_headline setweight similarity percentile_cont percentile_disc stddev variance
    corr width_bucket bit_length octet_length overlay translate quote_literal quote_ident
    quote_nullable txid_current pg_advisory_xact_lock pg_try_advisory_xact_lock
    pg_stat_get_activity pg_relation_size pg_total_relation_size pg_size_pretty
    jsonb_path_query jsonb_path_exists jsonb_typeof json_typeof jsonb_strip_nulls
    array_to_string string_to_array isfinite justify_days justify_hours date datetime
    julianday strftime ifnull iif instr hex quote typeof unixepoch last_insert_rowid changes
    total_changes group_concat total json json_extract json_set json_each json_array
    json_object printf
    """
)
_TEMPORARY = ("temp", "pg_temp")  # also "temporary", and the schemas "pg_temp_1", ...
_STATEMENTS = frozenset(("select", "values", "table", "insert", "update", "delete", "merge"))
_WORDS_BEFORE_NAMES = frozenset(("into", "table", "update", "as", "references", "copy", "index"))

verdicts: dict[str, Effect] = {}


def effect_of(statement: str) -> Effect:
    """Return what a text of SQL for PostgreSQL leaves behind at most."""
    verdict = verdicts.get(statement)
    if verdict is None:
        verdict = _read(statement)
        if len(verdicts) >= _REMEMBERED:
            verdicts.clear()
        if len(statement) <= _LONGEST:
            verdicts[statement] = verdict
    return verdict


def _without_data(found: re.Match[str]) -> str:
    if found["name"]:
        return found["name"]
    return " " if found[0].startswith(("--", "/*")) else " 0 "


def _read(statement: str) -> Effect:
    if len(statement) > _LONGEST:
        return Effect.RESET
    text = _DATA.sub(_without_data, statement)
    worst = Effect.RESET if _OBSCURE.search(statement) else Effect.NONE
    words: list[str] = []
    for word in [*_WORD.findall(text), ";"]:
        if word in ("'", '"'):
            return Effect.CLOSE  # a text whose end was not found: anything may stand in it
        if word == ";":
            worst = max(worst, _read_one(words))
            words = []
        else:
            words.append(word if word.startswith('"') else word.lower())
    return worst


def _read_one(words: list[str]) -> Effect:
    if not words:
        return Effect.NONE
    first = words[0]
    second = words[1] if len(words) > 1 else ""
    if first == "(":
        return _read_one(words[1:])
    if first == "set":
        # Of a transaction only; `SET LOCAL` outside of one has no effect.
        # With a dot it is the first part of a name.
        local = second in ("local", "transaction", "constraints") and words[2:3] != ["."]
        return Effect.NONE if local and not _calls(words) else Effect.RESET
    if first in ("listen", "load", "deallocate", "discard"):
        # What was notified is with the driver already; what is deallocated it still counts on.
        return Effect.CLOSE
    if first not in _PLAIN:
        return Effect.RESET  # reset, declare, prepare, execute, do, call, fetch, unlisten, ...
    if any(word.strip('"').startswith(_TEMPORARY) for word in words) or (
        "prepared" in words and first in ("commit", "rollback")
    ):
        return Effect.RESET
    return Effect.RESET if _calls(words) else Effect.NONE


def _calls(words: list[str]) -> bool:
    """Tell whether a function is called that is not known to leave nothing."""
    for index, word in enumerate(words):
        if word != "(" or index == 0:
            continue
        name = words[index - 1]
        before = words[index - 2] if index > 1 else ""
        if not (name[0].isalpha() or name[0] in '_"' or name[0] > "\x7f"):
            continue
        if name in _SYNTAX and before != ".":
            continue
        if name in _FUNCTIONS and (before != "." or words[index - 3 : index - 2] == ["pg_catalog"]):
            continue
        if index == 1 or before in _SYNTAX_AFTER.get(name, ()):
            continue
        if _is_name(words, index):
            continue
        return True
    return False


def _is_name(words: list[str], index: int) -> bool:
    """Tell whether the parenthesis at *index* follows the name of a table or an alias."""
    start = index - 1
    while start >= 2 and words[start - 1] == ".":
        start -= 2
    before = words[start - 1] if start >= 1 else ""
    if before in _WORDS_BEFORE_NAMES:
        return True
    if before == "on" and words[0] == "create" and "index" in words[1:3]:
        return True
    if before in ("exists", "if", "only", "concurrently", "recursive", "with"):
        return True
    # Further names of `WITH a (x) AS (...), b (y) AS (...)`.
    return before == "," and words[0] == "with" and _is_before_statement(words, index - 1)


def _is_before_statement(words: list[str], index: int) -> bool:
    """Tell whether *index* is among the names of a `WITH`, before the statement that uses them."""
    depth = 0
    for word in words[:index]:
        depth += (word == "(") - (word == ")")
        if depth == 0 and word in _STATEMENTS:
            return False
    return depth == 0
