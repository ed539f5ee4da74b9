"""What a statement may leave behind, told by its text, and what PostgreSQL says to that."""

from __future__ import annotations

import asyncpg  # type: ignore[import-untyped] # it has no types of its own
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxpool.resources import _sql
from sandboxpool.resources._sql import Effect, effect_of

from .databases import on_asyncio

NOTHING = [
    "",
    "select 1",
    "  SELECT count(*), max(x) FROM t WHERE a IN (1, 2) AND b = ANY($1::int[])",
    "insert into t (a, b) values ($1, now()) on conflict (a) do update set b = excluded.b",
    "update t set a = coalesce($1, a) where id = (select max(id) from t) returning *",
    "with a (x) as (select 1), b (y) as (select 2) select * from a, b",
    "with a as (select 1), b (y) as not materialized (select 2) insert into t (x) select 1",
    r"select E'a\'' 'b', ' /* ' as c",
    "select sum(x) over (partition by y) from t",
    "select cast(x as numeric(10, 2)) from t",
    "create table if not exists t (id serial primary key, name varchar(10), unique (name))",
    "create index i on t (a, b)",
    "begin; select 1; commit",
    "set local statement_timeout = 10",
    "set transaction isolation level serializable",
    "select 'a; set x = 1', 'it''s set_config(1)'",
    r"select e'\'; set x = 1; --'",
    "select $a1$ ; set x = 1 $a1$",
    'select 1 as "it\'s; set x"',
    "select 1 -- ; set x = 1 '",
    "/* set x = '1 */ select 1",
    "select pg_catalog.now()",
    "savepoint a",
    "explain (analyze) select 1",
]
SOMETHING = [
    "set search_path to x",
    "SET x = 1",
    "reset all",
    "select set_config('x.y', 'z', false)",
    "select SET_CONFIG('x.y', 'z', false)",
    "select \"set_config\"('x.y', 'z', false)",
    "select pg_advisory_lock(1)",
    "select f(1)",
    "select * from f(1)",
    "select * from a join b on f(a.x)",
    "select public.count(1)",
    "select x.now()",
    "insert into t (a) select f(a) from t",
    "with a (x) as (select f(1)) select * from a",
    "select 1; set x = 1",
    "select date'\\', set_config('x.y', 'z', false)",
    'select "a--", f(1)',
    "select a$b$, f(1), c$b$",
    "select $a1$ -- $a1$, f(1)",
    "select é(1)",
    "create temp table t (x int)",
    "create temporary view v as select 1",
    "select 1 into temp t",
    "create table pg_temp.t (x int)",
    "do $$ begin end $$",
    "call p()",
    "prepare s as select 1",
    "execute s",
    "declare c cursor with hold for select 1",
    "rollback prepared 'x'",
    "/* /* */ set x = 1; */ select 1",
    "explain analyze select f(1)",
    "select 1 where f(1)",
    "values (f(1))",
    "select over(1), key(2)",
    "unlisten x",
    "with a as (select 1) select 1, set_config('x.y', 'z', false) as b",
    "with a as (select 1) select * from a, f(1) as (b int)",
    "create table t as select 1 from a join b on f(a.x)",
    "set local.x = 1",
    'create table "pg_temp".t (x int)',
    "create table pg_temp_3.t (x int)",
    "select 1 --\r, f(1)",
    "select /* /* */ ' */ f(1) --'",
    "select E'a'\n'\\'', f(1) --'",
    "select E'a' -- b\n'\\'', f(1) --'",
    "select élower(1)",
    "select a\xa0lower(1)",
    "select $\U0001f600$ ' $\U0001f600$, f(1) --'",
    "select x.values(1)",
    'create table U&"pg\\005ftemp".t (x int)',
]
WORST = [
    "listen x",
    "LISTEN x",
    "discard all",
    "deallocate all",
    "load 'x'",
    "select 'a",
    'select "a',
]


@pytest.mark.parametrize("statement", NOTHING)
def test_leaves_nothing(statement: str) -> None:
    """Statements about data, whatever their texts look like, leave nothing."""
    assert effect_of(statement) == Effect.NONE


@pytest.mark.parametrize("statement", SOMETHING)
def test_may_leave_something(statement: str) -> None:
    """Settings, functions that are not known, and what hides them, may leave something."""
    assert effect_of(statement) == Effect.RESET


@pytest.mark.parametrize("statement", WORST)
def test_leaves_what_cannot_be_reset(statement: str) -> None:
    """What the driver counts on or has received already, and what is not understood, is worse."""
    assert effect_of(statement) == Effect.CLOSE


def test_long_texts_and_many() -> None:
    """A very long text is neither read nor remembered, and not more than a few thousand are."""
    assert effect_of("select 1" + " " * 30_000) == Effect.RESET
    for number in range(5000):
        effect_of(f"select {number}")
    assert len(_sql.verdicts) <= 4096


PARTS = [
    "select ",
    "1",
    ", ",
    "'a'",
    "''",
    "'",
    '"x"',
    "--",
    "\n",
    "/*",
    "*/",
    "$$",
    "$t$",
    "e'",
    "\\",
    "set_config('x.y', 'z', false)",
    "; set x.y = 'z'; ",
    ";",
    " as ",
    "date",
    "now()",
    "(",
    ")",
]


@pytest.mark.server
@on_asyncio
async def test_the_server_agrees(postgres: str) -> None:
    """
    Texts put together at random, out of all that quotes and hides: whatever is taken to leave
    nothing has left nothing, if the server executes it at all.
    """
    texts: list[str] = []

    @settings(
        max_examples=3000,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=9))
    def collect(parts: list[str]) -> None:
        texts.append("select " + "".join(parts))

    collect()
    connection = await asyncpg.connect(postgres)
    executed = changed = 0
    look = "select coalesce(current_setting('x.y', true), '')"
    try:
        for text in dict.fromkeys(texts):
            try:
                await connection.execute(text)
            except asyncpg.PostgresError:
                continue  # its settings are rolled back with it
            executed += 1
            if await connection.fetchval(look):
                changed += 1
                assert effect_of(text) != Effect.NONE, text
                await connection.execute("reset x.y")
    finally:
        await connection.close()
    assert executed > 100
    assert changed > 10
