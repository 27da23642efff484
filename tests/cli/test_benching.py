"""`bench`: on the user's own databases, in a table of its own that is gone afterwards."""

from __future__ import annotations

from nodoubt import wiring

from .conftest import Shop, nodoubt


def tables(shop: Shop) -> set[str]:
    found: set[str] = set()
    with wiring.onlooker(shop.urls, None) as (ctx, _):
        for participant in ctx.participants.values():
            session = participant.pool.acquire()
            found |= {row[0] for row in session.run("select name from sqlite_schema where type = 'table'")[0].rows}
            participant.pool.release(session)
    return found


def test_it_measures_each_database_alone_and_then_all_of_them_together(shop: Shop) -> None:
    before = tables(shop)
    document = shop.json("bench", "--yes", "--for", "0.3s", "--clients", "2")
    assert [one["on"] for one in document["figures"]] == [["shop"], ["stock"], ["shop", "stock"]]
    for one in document["figures"]:
        assert one["transactions"] > 0 and one["per_second"] > 0 and 0 < one["p50_ms"] <= one["p99_ms"]
    assert tables(shop) == before


def test_people_get_a_table(shop: Shop) -> None:
    result = shop.nodoubt("bench", "--yes", "--for", "1s", "--clients", "1")
    assert result.exit_code == 0, result.output
    assert "shop + stock" in result.output


def test_it_asks_first(shop: Shop) -> None:
    result = shop.nodoubt("bench")
    assert result.exit_code == 2 and "add --yes" in result.output


def test_a_table_of_that_name_is_left_alone_and_is_an_error(shop: Shop) -> None:
    with wiring.onlooker(shop.urls, None) as (ctx, _):
        session = ctx.participants["stock"].pool.acquire()
        session.run("create table benchmark_of_nodoubt (mine text)")
        ctx.participants["stock"].pool.release(session)
    result = shop.nodoubt("bench", "--yes")
    assert result.exit_code == 1 and "benchmark_of_nodoubt already exists" in result.output
    assert "benchmark_of_nodoubt" in tables(shop)  # that of `stock`; the one made on `shop` is gone
    with wiring.onlooker({"shop": shop.urls["shop"]}, None) as (ctx, _):
        found = (
            ctx.participants["shop"]
            .pool.acquire()
            .run("select name from sqlite_schema where name = 'benchmark_of_nodoubt'")
        )
    assert found[0].rows == ()


def test_a_file_that_is_not_there_is_not_made(empty: Shop) -> None:
    result = empty.nodoubt("bench", "--yes")
    assert result.exit_code == 1 and "there is no file" in result.output
    assert list(empty.folder.iterdir()) == []


def test_without_databases_it_says_how_to_name_them() -> None:
    result = nodoubt("bench", "--yes")
    assert result.exit_code == 2 and "Say which databases" in result.output
