"""Queries of TPC-H as Polars expressions."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable

import polars as pl

Frames = dict[str, pl.LazyFrame]
_col, _day = pl.col, datetime.date


def _revenue() -> pl.Expr:
    return _col("l_extendedprice") * (1 - _col("l_discount"))


def _q1(t: Frames) -> pl.LazyFrame:
    kept = t["lineitem"].filter(_col("l_shipdate") <= _day(1998, 9, 2))
    return (
        kept.group_by("l_returnflag", "l_linestatus")
        .agg(
            _col("l_quantity").sum().alias("sum_qty"),
            _col("l_extendedprice").sum().alias("sum_base_price"),
            _revenue().sum().alias("sum_disc_price"),
            _col("l_discount").mean().alias("avg_disc"),
            pl.len().alias("count_order"),
        )
        .sort("l_returnflag", "l_linestatus")
    )


def _q3(t: Frames) -> pl.LazyFrame:
    return (
        t["customer"]
        .filter(_col("c_mktsegment") == "BUILDING")
        .join(t["orders"].filter(_col("o_orderdate") < _day(1995, 3, 15)), left_on="c_custkey", right_on="o_custkey")
        .join(t["lineitem"].filter(_col("l_shipdate") > _day(1995, 3, 15)), left_on="o_orderkey", right_on="l_orderkey")
        .group_by("o_orderkey", "o_orderdate", "o_shippriority")
        .agg(_revenue().sum().alias("revenue"))
        .sort(["revenue", "o_orderdate"], descending=[True, False])
        .head(10)
    )


def _q4(t: Frames) -> pl.LazyFrame:
    late = t["lineitem"].filter(_col("l_commitdate") < _col("l_receiptdate"))
    quarter = _col("o_orderdate").is_between(_day(1993, 7, 1), _day(1993, 9, 30))
    return (
        t["orders"]
        .filter(quarter)
        .join(late, left_on="o_orderkey", right_on="l_orderkey", how="semi")
        .group_by("o_orderpriority")
        .agg(pl.len().alias("order_count"))
        .sort("o_orderpriority")
    )


def _q6(t: Frames) -> pl.LazyFrame:
    year = (_col("l_shipdate") >= _day(1994, 1, 1)) & (_col("l_shipdate") < _day(1995, 1, 1))
    low, high = decimal.Decimal("0.05"), decimal.Decimal("0.07")
    kept = t["lineitem"].filter(year & _col("l_discount").is_between(low, high) & (_col("l_quantity") < 24))
    return kept.select((_col("l_extendedprice") * _col("l_discount")).sum().alias("revenue"))


def _q9(t: Frames) -> pl.LazyFrame:
    amount = _revenue() - _col("ps_supplycost") * _col("l_quantity")
    return (
        t["part"]
        .filter(_col("p_name").str.contains("green", literal=True))
        .join(t["lineitem"], left_on="p_partkey", right_on="l_partkey")
        .join(t["partsupp"], left_on=["p_partkey", "l_suppkey"], right_on=["ps_partkey", "ps_suppkey"])
        .join(t["supplier"], left_on="l_suppkey", right_on="s_suppkey")
        .join(t["orders"], left_on="l_orderkey", right_on="o_orderkey")
        .join(t["nation"], left_on="s_nationkey", right_on="n_nationkey")
        .group_by("n_name", _col("o_orderdate").dt.year().alias("o_year"))
        .agg(amount.sum().alias("sum_profit"))
        .sort(["n_name", "o_year"], descending=[False, True])
    )


def _q12(t: Frames) -> pl.LazyFrame:
    in_order = (_col("l_commitdate") < _col("l_receiptdate")) & (_col("l_shipdate") < _col("l_commitdate"))
    year = _col("l_receiptdate").is_between(_day(1994, 1, 1), _day(1994, 12, 31))
    urgent = _col("o_orderpriority").is_in(["1-URGENT", "2-HIGH"])
    return (
        t["lineitem"]
        .filter(_col("l_shipmode").is_in(["MAIL", "SHIP"]) & in_order & year)
        .join(t["orders"], left_on="l_orderkey", right_on="o_orderkey")
        .group_by("l_shipmode")
        .agg(urgent.sum().alias("high"), urgent.not_().sum().alias("low"))
        .sort("l_shipmode")
    )


def _q14(t: Frames) -> pl.LazyFrame:
    month = (_col("l_shipdate") >= _day(1995, 9, 1)) & (_col("l_shipdate") < _day(1995, 10, 1))
    promo = pl.when(_col("p_type").str.starts_with("PROMO")).then(_revenue()).otherwise(0)
    joined = t["lineitem"].filter(month).join(t["part"], left_on="l_partkey", right_on="p_partkey")
    return joined.select((100.0 * promo.sum().cast(pl.Float64) / _revenue().sum().cast(pl.Float64)).alias("promo"))


def _q18(t: Frames) -> pl.LazyFrame:
    large = (
        t["lineitem"].group_by("l_orderkey").agg(_col("l_quantity").sum().alias("total")).filter(_col("total") > 300)
    )
    return (
        t["orders"]
        .join(large, left_on="o_orderkey", right_on="l_orderkey")
        .join(t["customer"], left_on="o_custkey", right_on="c_custkey")
        .select("c_name", "o_custkey", "o_orderkey", "o_orderdate", "o_totalprice", "total")
        .sort(["o_totalprice", "o_orderdate"], descending=[True, False])
        .head(100)
    )


# Those of the 22 that are here, by number.
POLARS: dict[int, Callable[[Frames], pl.LazyFrame]] = {
    1: _q1, 3: _q3, 4: _q4, 6: _q6, 9: _q9, 12: _q12, 14: _q14, 18: _q18,
}  # fmt: skip
