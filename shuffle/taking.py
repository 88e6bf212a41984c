"""pyarrow's take() for every type there is: rows of several chunks in a new order, in memory of their own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .physical import is_list_view, is_view


def take(chunks: list[pa.Array], kind: pa.DataType, sources: pa.Array) -> pa.Array:
    """Rows of the concatenated chunks, in the order of sources; views keep no bytes but their own.

    Raises: ArrowInvalid where dictionaries of different chunks need a wider index type together.
    """
    if isinstance(kind, pa.BaseExtensionType):
        stored = take([chunk.storage for chunk in chunks], kind.storage_type, sources)
        return pa.ExtensionArray.from_storage(kind, stored)
    if pa.types.is_run_end_encoded(kind):
        plain = [pc.run_end_decode(chunk) for chunk in chunks]
        return pc.run_end_encode(take(plain, kind.value_type, sources), kind.run_end_type)
    if is_list_view(kind):
        return _compact(pa.concat_arrays(chunks).take(sources))
    if pa.types.is_dictionary(kind) and any(chunk.dictionary.null_count for chunk in chunks):
        chunks = [
            chunk.dictionary_decode().dictionary_encode().cast(kind) for chunk in chunks
        ]  # pyarrow unifies no nulls
    plain_kind = _without_views(kind)
    if plain_kind.equals(kind):
        return pa.concat_arrays(chunks).take(sources)
    return pa.concat_arrays([chunk.cast(plain_kind) for chunk in chunks]).take(sources).cast(kind)


def _compact(lists: pa.Array) -> pa.Array:
    """A list view of which each value is in the child once, in order. (pyarrow's cast to a list loses values of some.)"""
    sizes = pc.list_value_length(lists).fill_null(0).to_numpy().astype("i8")
    ends = np.cumsum(sizes)
    places = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(lists.offsets.to_numpy() - (ends - sizes), sizes)
    large = pa.types.is_large_list_view(lists.type)
    kind = np.int64 if large else np.int32
    values = take([lists.values], lists.type.value_type, pa.array(places))
    mask = lists.is_null() if lists.null_count else None
    make = pa.LargeListViewArray if large else pa.ListViewArray
    return make.from_arrays((ends - sizes).astype(kind), sizes.astype(kind), values, type=lists.type, mask=mask)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """The type with strings and binary values with offsets in place of views, at any depth."""
    if is_view(kind):
        return pa.large_binary() if pa.types.is_binary_view(kind) else pa.large_string()

    def field(number: int) -> pa.Field:
        inner = kind.field(number)
        return inner.with_type(_without_views(inner.type))

    if pa.types.is_struct(kind):
        return pa.struct([field(number) for number in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(_without_views(kind.key_type), kind.item_field.with_type(_without_views(kind.item_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(field(0), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(field(0))
    return pa.list_(field(0)) if pa.types.is_list(kind) else kind
