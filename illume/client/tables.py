"""Data sets as tables of pandas, polars or `datasets`, or as rows one by one."""

from __future__ import annotations

import functools
import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import IO, Any, Literal

import httpx

from illume.client.connection import Connection
from illume.client.errors import Unreachable

Kind = Literal["pandas", "polars", "datasets"]


def load(connection: Connection, slug: str, kind: Kind, params: Mapping[str, Any]) -> Any:
    """A data set as a table of the package `kind`. Raises ImportError, ValueError for another kind."""
    make = {"pandas": as_pandas, "polars": as_polars, "datasets": as_datasets}.get(kind)
    if make is None:
        raise ValueError(f"A data set becomes a table of pandas, polars or datasets, not of {kind!r}.")
    try:
        package = importlib.import_module(kind)
    except ImportError as error:
        raise ImportError(f"dataset(to='{kind}') needs the package {kind}: pip install {kind}") from error
    with tempfile.TemporaryFile() as file:

        def download() -> None:
            file.seek(0)
            file.truncate()
            with closing(connection.open(f"projects/{slug}/dataset", {**params, "as": "parquet"})) as response:
                for piece in response.iter_bytes():
                    file.write(piece)

        connection.persist(download)
        file.seek(0)
        return make(package, file)


def as_pandas(pandas: Any, file: IO[bytes]) -> Any:
    """A Parquet file as a `pandas.DataFrame`."""
    return pandas.read_parquet(file)


def as_polars(polars: Any, file: IO[bytes]) -> Any:
    """A Parquet file as a `polars.DataFrame`."""
    return polars.read_parquet(file)


def as_datasets(datasets: Any, file: IO[bytes]) -> Any:
    """A Parquet file as a `datasets.Dataset` in memory, with pictures as its images."""
    import pyarrow.parquet as pq

    return datasets.Dataset(datasets.table.InMemoryTable(pq.read_table(file)))


def stream(connection: Connection, slug: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a data set as they arrive. One that breaks off goes on after its last row, as of the same moment.

    Raises `Unreachable` where it breaks off twice without a row in between.
    """
    place: dict[str, str] = {}
    while True:
        before = dict(place)
        asked = {**params, **place}
        response = connection.persist(functools.partial(connection.open, f"projects/{slug}/dataset", asked))
        with closing(response):
            try:
                place["cursor"] = response.headers["illume-cursor"]
                for line in response.iter_lines():
                    row = json.loads(line)
                    yield row
                    place["after"] = row["id"]
            except httpx.TransportError as error:
                if place == before:
                    raise Unreachable(f"{connection.url} breaks off the data set again and again ({error}).") from error
            else:
                return
