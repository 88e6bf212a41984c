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
        return _take_list_views(chunks, kind, sources)
    if pa.types.is_dictionary(kind) and any(chunk.dictionary.null_count for chunk in chunks):
        chunks = [
            chunk.dictionary_decode().dictionary_encode().cast(kind) for chunk in chunks
        ]  # pyarrow unifies no nulls
    plain_kind = _without_views(kind)
    if plain_kind.equals(kind):
        return pa.concat_arrays(chunks).take(sources)
    return pa.concat_arrays([chunk.cast(plain_kind) for chunk in chunks]).take(sources).cast(kind)


def _take_list_views(chunks: list[pa.Array], kind: pa.DataType, sources: pa.Array) -> pa.Array:
    """By way of lists, whose children lie in order. (pyarrow's own cast to lists is wrong for children of some types.)"""
    large = pa.types.is_large_list_view(kind)
    wide, lists = ("i8", pa.LargeListArray) if large else ("i4", pa.ListArray)
    made = []
    for chunk in chunks:
        lengths = np.asarray(pc.list_value_length(chunk).fill_null(0))
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(wide))
        mask = chunk.is_null() if chunk.null_count else None
        made.append(lists.from_arrays(offsets, chunk.flatten(), mask=mask))
    taken = take(made, made[0].type, sources)
    sizes = pc.list_value_length(taken).fill_null(0)
    mask = taken.is_null() if taken.null_count else None
    views = pa.LargeListViewArray if large else pa.ListViewArray
    return views.from_arrays(taken.offsets.slice(0, len(taken)), sizes, taken.values, type=kind, mask=mask)


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
