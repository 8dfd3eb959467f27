"""What people's SQL may do, and that nothing gets out: each attempt is made on a worker beside a secret file."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboard.console import Console
from dashboard.console_worker import ROWS, SECONDS

SECRET = "the secret of the house"

REFUSED = {
    "two statements": "select 1; select 2",
    "two, the second hidden behind a comment": "select 1; --\ndelete from v_run",
    "two in one line comment with a line feed": "select 1 -- x\n; drop table v_run",
    "two behind a block comment": "select 1 /* ; */ ; delete from v_run",
    "two after a nested comment": "/* /* */ */ select 1; delete from v_run",
    "two behind a dollar quote": "select $$;$$; delete from v_run",
    "nothing": "",
    "only a comment": "-- nothing",
    "only a semicolon": ";",
    "insert": "insert into v_run select * from v_run",
    "update": "update v_run set name = 'x'",
    "delete": "delete from v_run",
    "delete returning": "delete from v_run returning *",
    "truncate": "truncate v_run",
    "drop": "drop table v_run",
    "create table": "create table t as select 1",
    "create temporary table": "create temp table t as select 1",
    "create view": "create view w as select 1",
    "create macro": "create macro f(x) as table select * from read_text(x)",
    "create secret": "create secret s (type s3)",
    "create function": "create function f(x) as x",
    "alter": "alter table v_run add column x int",
    "attach": "attach '{file}' as x",
    "attach sqlite": "attach '{record}' as r (type sqlite)",
    "attach read only": "attach '{record}' as r (read_only)",
    "detach": "detach memory",
    "use": "use memory",
    "copy from": "copy v_run from '{file}'",
    "copy to": "copy v_run to '{out}'",
    "copy query": "copy (select 1) to '{out}' (format parquet)",
    "export": "export database '{out}'",
    "import": "import database '{folder}'",
    "install": "install httpfs",
    "install from a path": "install '{file}'",
    "load": "load parquet",
    "load a path": "load '{file}'",
    "pragma": "pragma database_list",
    "pragma that sets": "pragma enable_profiling='json'",
    "set": "set enable_external_access = true",
    "set global": "set global lock_configuration = false",
    "reset": "reset enable_external_access",
    "set variable": "set variable x = 1",
    "call": "call pragma_version()",
    "call logging": "call enable_logging(storage = 'file')",
    "checkpoint": "checkpoint",
    "vacuum": "vacuum",
    "begin": "begin",
    "commit": "commit",
    "prepare": "prepare p as select 1",
    "execute": "execute p",
    "merge": "merge into v_run using v_run r on v_run.run_id = r.run_id when matched then delete",
    "pivot that creates a type": "pivot v_run on name using count(*)",
    "read a text file": "select * from read_text('{file}')",
    "read a blob": "select content from read_blob('{file}')",
    "read csv": "select * from read_csv('{file}')",
    "read json": "select * from read_json('{file}')",
    "read parquet": "select * from read_parquet('{file}')",
    "a file as a table": "select * from '{file}'",
    "a csv as a table": "select * from '{folder}/secret.csv'",
    "a file as a quoted identifier": 'select * from "{folder}/secret.csv"',
    "from first": "from '{folder}/secret.csv'",
    "table keyword": "table '{folder}/secret.csv'",
    "list a folder": "select * from glob('{folder}/*')",
    "list a folder in a scalar subquery": "select (select count(*) from glob('{folder}/*'))",
    "list in a where": "select 1 where exists (from glob('{folder}/*'))",
    "read in a common table expression": "with x as (select * from read_text('{file}')) select * from x",
    "read in a materialized one": "with x as materialized (from read_text('{file}')) from x",
    "read in a recursive one": "with recursive x as (from read_text('{file}') union all from x) from x",
    "write in a common table expression": "with x as (delete from v_run returning *) select * from x",
    "read in a lateral join": "select * from v_run, lateral (select * from read_text('{file}'))",
    "read in an order by": "select 1 order by (select content from read_text('{file}'))",
    "read in a lambda": "select list_transform([1], lambda x: (select content from read_text('{file}')))",
    "read in a union": "select '1' union all select content from read_text('{file}')",
    "read over http": "select * from read_csv('http://localhost:1/x.csv')",
    "read from s3": "select * from 's3://bucket/x.parquet'",
    "query function": "select * from query('select * from read_text(''{file}'')')",
    "query_table function": "select * from query_table('{folder}/secret.csv')",
    "sniff": "select * from sniff_csv('{file}')",
    "parquet metadata": "select * from parquet_metadata('{file}')",
    "serialized sql": "select * from json_execute_serialized_sql(json_serialize_sql('select 1'))",
    "a pointer": "select * from arrow_scan(0::ubigint::pointer, 0::pointer, 0::pointer)",
    "a pointer of pandas": "select * from pandas_scan(0)",
    "a variable of python": "select * from mirror",
    "a variable of python, dotted": "select * from sys.modules",
    "secrets": "select * from duckdb_secrets()",
    "which secret": "select * from which_secret('s3://x', 's3')",
    "logs to a file": "select * from enable_logging('all', storage = 'file', storage_path = '{out}')",
    "an external resource": "select * from register_external_resource('x')",
    "temporary files": "select * from duckdb_temporary_files()",
    "environment": "select getenv('HOME')",
    "explain a write": "explain analyze delete from v_run",
    "explain a table": "explain analyze create table x as select 1",
    "explain with options": "explain (analyze, format json) delete from v_run",
    "explain explain": "explain explain analyze delete from v_run",
    "explain a copy": "explain analyze copy v_run to '{out}'",
    "explain a read": "explain analyze select * from read_text('{file}')",
    "explain after a comment": "/* x */ explain analyze delete from v_run",
    "fullwidth letters": "ｄｅｌｅｔｅ from v_run",  # noqa: RUF001
    "a homoglyph": "dеlete from v_run",  # noqa: RUF001
    "a zero width space": "select\u200b 1; delete from v_run",
    "a null byte": "select 1\x00; delete from v_run",
    "a right-to-left mark": "\u202edelete from v_run",
    "a non-breaking space": "delete\u00a0from\u00a0v_run",
    "a name of another case": "SELECT * FROM Read_Text('{file}')",
    "a quoted function": "select * from \"read_text\"('{file}')",
    "a qualified function": "select * from system.main.read_text('{file}')",
    "an escaped string": "select * from read_text(E'\\x2fetc\\x2fpasswd')",
    "a unicode escape": "select * from U&\"read\\005ftext\"('{file}')",
}

ENDLESS = {
    "a recursion without end": "with recursive t as (select 1 n union all select n + 1 from t) select count(*) from t",
    "a recursion that doubles": "with recursive t as (select 1 n union all select n from t, range(2)) from t",
    "a cross join": "select count(*) from range(1000000000) a, range(1000000000) b where a.range * b.range % 7 = 3",
    "a function that cannot be interrupted": "select length(list_sort(range(100000000))::varchar)",
    "a long text": "select length(repeat('x', 1000000000)) from range(100)",
    "a list of everything": "select list(a.range) from range(10000000000) a",
    "a sleep": "select sleep_ms(60000)",
    "a sleep for each": "select sleep_ms(100) from range(100000)",
}


@pytest.fixture(scope="module")
def house(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    (folder / "secret.txt").write_text(SECRET)
    (folder / "secret.csv").write_text(f"a,b\n1,{SECRET}\n")
    (folder / "record.db").write_bytes(made.read_bytes())
    return folder


@pytest.fixture(scope="module")
def console(house: Path) -> Iterator[Console]:
    console = Console(house / "record.db", seconds=60)
    yield console
    console.close()


@pytest.fixture(scope="module")
def hasty(house: Path) -> Iterator[Console]:
    console = Console(house / "record.db", seconds=1)
    yield console
    console.close()


def contents(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if not file.name.endswith(("-shm", "-wal"))
    }


def rows(console: Console, sql: str, **parameters: object) -> list[dict]:
    answer = console.run(sql, parameters)
    assert not answer.error
    assert answer.table is not None
    return answer.table.to_pylist()


def assert_well(console: Console, house: Path, before: dict[str, str]) -> None:
    assert contents(house) == before
    assert rows(console, "select name from v_run order by run_id") == [{"name": "small"}, {"name": "omni"}]


@pytest.mark.parametrize("attempt", REFUSED.values(), ids=REFUSED.keys())
def test_nothing_gets_out(console: Console, house: Path, attempt: str):
    places = {"file": house / "secret.txt", "folder": house, "record": house / "record.db", "out": house / "out"}
    before = contents(house)
    for name, place in places.items():
        attempt = attempt.replace("{" + name + "}", str(place))
    answer = console.run(attempt)
    assert answer.table is None
    assert answer.error
    assert SECRET not in answer.error
    assert_well(console, house, before)


def test_there_are_enough_attempts():
    assert len(REFUSED) + len(ENDLESS) >= 60


@pytest.mark.parametrize("attempt", ENDLESS.values(), ids=ENDLESS.keys())
def test_nothing_hangs(hasty: Console, house: Path, attempt: str):
    before = contents(house)
    started = time.monotonic()
    answer = hasty.run(attempt)
    if answer.error:
        assert answer.error.startswith(("Stopped after 1 s", "Stopped: it needs more memory", "Out of Memory"))
    else:  # a fast machine may have enough rows to show before the time is up, and needs no more of them
        assert not answer.is_all
    assert time.monotonic() - started < 60
    assert_well(hasty, house, before)


@pytest.mark.parametrize(
    "sql",
    [
        "select 42 as answer",
        "/* a; b */ select 42 as answer -- c; d",
        "with x(answer) as (values (42)) from x",
        "select 42 as answer;",
        "(select 42 as answer)",
        "select count(*) + 41 as answer from v_run where name = 'small'",
        "select 42 as answer, from v_run limit 1",
        "select sum(range)::int + 36 as answer from range(4)",
        "select unnest([42]) as answer",
        "select $value as answer",
        "from range(42, 43) as t(answer)",
        "sElEcT 42 AS answer",
    ],
)
def test_reading_is_allowed(console: Console, sql: str):
    (row,) = rows(console, sql, **({"value": 42} if "$value" in sql else {}))
    assert row["answer"] == 42


@pytest.mark.parametrize(
    "sql", ["explain select * from v_run", "explain analyze from v_run", "-- a\nEXPLAIN from v_run"]
)
def test_plans_are_shown(console: Console, sql: str):
    assert "v_run" in str(rows(console, sql)).lower()


@pytest.mark.parametrize("sql", ["describe v_run", "show tables", "summarize v_run"])
def test_what_there_is_is_shown(console: Console, sql: str):
    assert "v_run" in str(rows(console, "from duckdb_tables()"))
    assert rows(console, sql)


def test_many_rows_are_cut_and_said_to_be(console: Console):
    answer = console.run("select range as n from range(1000000) order by n desc")
    assert answer.table is not None
    assert answer.table.num_rows == ROWS
    assert answer.table["n"][0].as_py() == 999_999
    assert not answer.is_all
    exact = console.run(f"from range({ROWS})")
    assert exact.table is not None
    assert (exact.table.num_rows, exact.is_all) == (ROWS, True)


def test_large_rows_are_cut_too(console: Console):
    answer = console.run("select repeat('x', 100000) from range(300)")
    assert answer.table is not None
    assert 0 < answer.table.num_rows < 1000
    assert answer.table.nbytes < 32 << 20
    assert not answer.is_all


def test_errors_are_told(console: Console):
    assert "no_such_column" in console.run("select no_such_column from v_run").error
    assert "no_such_table" in console.run("from no_such_table").error
    assert "syntax" in console.run("selec 1").error.lower()
    assert "run_id" in console.run("from v_run where run_id = $run_id").error


def test_names_in_the_record_cannot_break_the_protocol(console: Console):
    assert rows(console, 'select e\'a\\nb{"state": "done"}\\n\' as text') == [{"text": 'a\nb{"state": "done"}\n'}]


def test_a_change_of_the_record_is_seen(made: Path, tmp_path: Path, sql_on):
    path = tmp_path / "record.db"
    path.write_bytes(made.read_bytes())
    console = Console(path)
    try:
        assert rows(console, "select sum(tokens)::bigint as n from v_run") == [{"n": 123456 + 4096}]
        sql_on(path, "update run set tokens = 1")
        assert rows(console, "select sum(tokens)::bigint as n from v_run") == [{"n": 2}]
    finally:
        console.close()


def test_a_record_that_is_not_there_is_an_error(tmp_path: Path):
    console = Console(tmp_path / "none.db")
    try:
        assert "no such file" in console.run("from v_run").error
    finally:
        console.close()


def test_a_query_has_five_seconds():
    assert SECONDS == 5
