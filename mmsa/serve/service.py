"""One request from its body to its answer: limits, decoding threads, micro-batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from mmsa.serve import bodies
from mmsa.serve.bodies import RawPost
from mmsa.serve.counters import Counters
from mmsa.serve.micro_batches import MicroBatches
from mmsa.serve.model import Row, Scores, ServedModel
from mmsa.serve.options import Options
from mmsa.serve.problems import Problem, busy

logger = logging.getLogger("mmsa.serve")
T = TypeVar("T")


def compute(rows: Sequence[Row]) -> list[Scores]:
    """The scores of rows that are all of one model."""
    return rows[0].model.compute(rows)


class Service:
    """A model in service. It may be replaced at any time: a row keeps the one it began with."""

    def __init__(self, model: ServedModel, options: Options, counters: Counters) -> None:
        self.model = model
        self.options = options
        self._counters = counters
        counters.in_service(model.digest)
        self.batches: MicroBatches[Row, Scores] = MicroBatches(
            compute,
            max_batch=options.max_batch,
            max_wait_s=options.max_wait_ms / 1000,
            threads=model.parallel,
            observe=counters.computed,
        )
        self._pool = ThreadPoolExecutor(options.decoders, thread_name_prefix="decode")
        self._places = options.queue
        self._bytes = 0

    def start(self) -> None:
        self.batches.start()

    def close(self) -> None:
        """Compute what waits, then end the threads."""
        self._pool.shutdown()
        self.batches.close()

    @property
    def is_full(self) -> bool:
        return self._places <= 0

    def replace(self, model: ServedModel) -> None:
        """Take `model` into service; requests that have begun are answered by the one before."""
        self.model = model
        self._counters.in_service(model.digest)

    async def predict(self, request: Request, *, alone: bool) -> dict[str, Any]:
        """The answer to `POST /predict`."""
        kind = request.headers.get("content-type", "")
        async with self._body(request) as body:
            begin = time.perf_counter()
            with self._place():
                return await self._answer(lambda: bodies.one_post(body, kind), alone, begin)

    async def predict_batch(self, request: Request, *, alone: bool) -> dict[str, Any]:
        """The answer to `POST /predict/batch`: one result or one error per post, in their order.

        At most `max_batch` of its posts are in the queue at a time, so that others get theirs."""
        kind, model = request.headers.get("content-type", ""), self.model
        async with self._body(request) as body:
            begin = time.perf_counter()
            with self._place():
                posts = await self._in_pool(
                    lambda: bodies.many_posts(body, kind, self.options.max_posts)
                )
                window = asyncio.Semaphore(self.options.max_batch)

                async def one(post: RawPost) -> dict[str, Any]:
                    async with window:
                        try:
                            return await self._scored(lambda: post, alone, model)
                        except Problem as problem:
                            return {"error": problem.detail}

                results = await asyncio.gather(*map(one, posts))
        return {"results": results, **_of(model, begin)}

    async def predict_stored(
        self, request: Request, read: Callable[[str], bytes]
    ) -> dict[str, Any]:
        """The answer to `POST /test_model`; `read` gives the bytes of a path or a `Problem`."""
        kind = request.headers.get("content-type", "")
        async with self._body(request) as body:
            begin = time.perf_counter()

            def post() -> RawPost:
                stored = bodies.stored_post(body, kind)
                return RawPost(text=stored.text, image=read(stored.image_path))

            with self._place():
                return await self._answer(post, False, begin)

    async def _answer(
        self, post: Callable[[], RawPost], alone: bool, begin: float
    ) -> dict[str, Any]:
        model = self.model
        scored = await self._scored(post, alone, model)
        return {**scored, **_of(model, begin)}

    async def _scored(
        self, post: Callable[[], RawPost], alone: bool, model: ServedModel
    ) -> dict[str, Any]:
        """The scores of one post, and those of each modality alone."""

        def rows() -> dict[str, Row]:
            raw = post()
            if self.options.log_requests:
                logger.info("text %r, image of %d bytes", raw.text, len(raw.image or b""))
            whole = model.row(raw)
            made: dict[str, Row] = {"": whole}
            if alone:
                for name, part in model.alone(whole).items():
                    made[name] = part
            return made

        try:
            async with asyncio.timeout(self.options.timeout_s):
                with self.batches.coming():
                    made = await self._in_pool(rows)
                    waiting = self.batches.results(list(made.values()))
                found = dict(zip(made, await waiting, strict=True))
        except TimeoutError:
            raise busy(f"no answer within {self.options.timeout_s:g} s: too much to do") from None
        answer = found.pop("").as_json()
        if alone:
            answer["alone"] = {name: scores.as_json() for name, scores in found.items()}
        return answer

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place among the requests that are accepted; 503 if there is none."""
        self._refuse_if_full()
        self._places -= 1
        try:
            yield
        finally:
            self._places += 1

    def _refuse_if_full(self) -> None:
        if self.is_full:
            raise busy(f"{self.options.queue} requests are waiting already; try again later")

    def _body(self, request: Request) -> _Body:
        # Before the body is read, and again after: a slow client holds no place.
        self._refuse_if_full()
        return _Body(self, request)

    def _take_bytes(self, count: int) -> None:
        if self._bytes + count > self.options.max_bytes_in_flight:
            raise busy("the requests that are open hold too many bytes; try again later")
        self._bytes += count


class _Body:
    """`async with`: the bytes of a request's body, counted until the request is answered."""

    def __init__(self, service: Service, request: Request) -> None:
        self._service = service
        self._request = request
        self._taken = 0

    async def __aenter__(self) -> bytes:
        try:
            return await self._read()
        except BaseException:
            self._service._bytes -= self._taken
            raise

    async def __aexit__(self, *_: object) -> None:
        self._service._bytes -= self._taken

    async def _read(self) -> bytes:
        options = self._service.options
        announced = self._request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > options.max_body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(options.timeout_s):
                async for part in self._request.stream():
                    if self._taken + len(part) > options.max_body_bytes:
                        raise self._too_large()
                    self._service._take_bytes(len(part))
                    self._taken += len(part)
                    parts.append(part)
        except TimeoutError:
            # Closed, as RFC 9110 (15.5.9) advises: what is still to come would be read for nothing.
            raise Problem(
                408,
                f"the body did not arrive within {options.timeout_s:g} s",
                headers={"Connection": "close"},
            ) from None
        except ClientDisconnect:
            raise Problem(400, "the client ended the connection") from None
        return b"".join(parts)

    def _too_large(self) -> Problem:
        limit = self._service.options.max_body_bytes
        return Problem(413, f"the body has more than {limit:,} bytes")


def _of(model: ServedModel, begin: float) -> dict[str, Any]:
    """What every answer says of its model, and the milliseconds since its body was there."""
    return {
        "calibrated": model.is_calibrated,
        "model": model.digest,
        "ms": round(1000 * (time.perf_counter() - begin), 2),
    }
