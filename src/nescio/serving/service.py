"""The HTTP service: one process with the network, a few that decode, and everything that is counted in one place."""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import Depends, FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from torch import Tensor

import nescio
from nescio.calibration.drift import Drift
from nescio.core.errors import BadImage, InputError
from nescio.deploy.deployed import Deployed, Judged, Verdict
from nescio.deploy.file import record
from nescio.serving.answers import Answer, Explanation, ImageVerdict, Status, problems
from nescio.serving.batcher import Batcher
from nescio.serving.connections import CONNECTIONS, Connection, possible_connections
from nescio.serving.decoders import STATUS, Decoders
from nescio.serving.description import described
from nescio.serving.explain import Explainer
from nescio.serving.limits import AGAIN, BUSY, FOREIGN, LATE, NO_TOKEN, TOO_LARGE, Gate, Limits, refusal
from nescio.serving.metrics import Metrics
from nescio.serving.peers import LOOPBACK, client_of, is_loopback
from nescio.serving.seldom import Seldom

log = logging.getLogger(__name__)
log.addFilter(Seldom())

PREDICT = "/predict"
PAGES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/docs.css": ("docs.css", "text/css"),
}
FREE = {*PAGES, "/health", "/ready"}
"""Paths that need no token: the page without anything on it, and what a machine asks to see whether this one lives."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
KEEP_ALIVE = 75
"""Seconds that a connection may be idle: longer than the 60 of usual load balancers, which must be who hangs up."""
_LONGEST = 200
"""Characters of a file's name that are said back."""

Judgement = tuple[Judged, int, Explanation | None]
"""Of one image: what is said of its batch, its row there, and its explanation."""


class Service:
    """What the endpoints share.

    Args:
        deployed: judges the images.
        limits: of requests.
        batch_size: images that go through the network together, at most.
        decoders: processes that decode; one per core, at most 8, by default.
    """

    def __init__(
        self, deployed: Deployed, limits: Limits, *, batch_size: int | None = None, decoders: int | None = None
    ) -> None:
        self.deployed, self.limits = deployed, limits
        self.batch_size, self.processes = batch_size or deployed.session.batch, decoders
        self.drift = Drift(deployed.calibration)  # read and changed by the event loop's thread alone
        self.metrics = Metrics(self.picture)
        self.about = record(deployed, embedded=True)
        self.ready = False

    async def start(self) -> None:
        """Start the processes and the threads, and see that the network runs."""
        await asyncio.to_thread(self._start)
        self.decode = Decoders(
            self.deployed.classifier.transform,
            processes=self.processes,
            most=self.limits.pixels,
            seconds=self.limits.seconds,
        )
        await self.decode.start()
        self.ready = True

    def _start(self) -> None:
        self.deployed.judge(torch.randint(0, 256, (2, *self.deployed.classifier.size), dtype=torch.uint8))
        self.judging, self.explaining = self._batcher(self._judge), self._batcher(Explainer(self.deployed))

    async def stop(self) -> None:
        """Finish what has come in, and end them."""
        self.ready = False
        for batcher in (self.judging, self.explaining):
            await asyncio.to_thread(batcher.close)
        await self.decode.close()

    @property
    def alive(self) -> bool:
        """Whether the threads with the network run."""
        return self.ready and self.judging.thread.is_alive() and self.explaining.thread.is_alive()

    def picture(self) -> dict[str, Any]:
        """How the last images compare with the calibration images."""
        return self.drift.picture(self.deployed.classifier.classes)

    def forget(self) -> None:
        """Begin the test for a change anew."""
        self.drift = Drift(self.deployed.calibration)
        log.warning("the test for a change of the input was reset at a client's request")

    async def verdicts(
        self, uploads: list[UploadFile], *, explain: bool, count: bool, client: str
    ) -> list[ImageVerdict]:
        """Verdicts on images.

        Args:
            uploads: encoded images.
            explain: add what a verdict may be understood by.
            count: whether the images are input that is tested for a change.
            client: whose turn they take.

        Raises:
            HTTPException: there are too many, or some cannot be read; each of these is named.
        """
        if len(uploads) > self.limits.images:
            raise HTTPException(TOO_LARGE, f"{len(uploads)} images in one request: the limit is {self.limits.images}")
        names = [(u.filename or f"image {i}")[:_LONGEST] for i, u in enumerate(uploads)]
        found = await asyncio.gather(*(self._decoded(upload, client) for upload in uploads))
        bad = [(name, e) for name, e in zip(names, found, strict=True) if isinstance(e, BadImage)]
        if bad:
            self.metrics.images.labels("refused").inc(len(bad))
            raise HTTPException(max(STATUS[type(e)] for _, e in bad), "; ".join(f"{name}: {e}" for name, e in bad))
        images = [image for image in found if isinstance(image, Tensor)]
        batcher = self.explaining if explain else self.judging
        answers = await asyncio.gather(*(asyncio.wrap_future(batcher.submit(image, client)) for image in images))
        if count:
            for judged, i, _ in answers:
                for alarm in self.drift.update(judged.score[i : i + 1], judged.pred[i : i + 1]):
                    log.warning("the input has changed since image %d (noticed at image %d)", alarm.began, alarm.image)
        verdicts = [self._verdict(judged, i) for judged, i, _ in answers]
        return [ImageVerdict.of(name, v, e) for name, v, (_, _, e) in zip(names, verdicts, answers, strict=True)]

    async def _decoded(self, upload: UploadFile, client: str) -> Tensor | BadImage:
        try:
            return await self.decode(await upload.read(), client)
        except BadImage as e:
            return e

    def _judge(self, images: Tensor) -> tuple[Judged, list[None]]:
        return self.deployed.judge(images), [None] * len(images)

    def _batcher(self, judge: Callable[[Tensor], tuple[Judged, Sequence[Explanation | None]]]) -> Batcher[Judgement]:
        def work(images: Tensor) -> list[Judgement]:
            judged, explanations = judge(images)
            self.metrics.batches.observe(len(images))
            return [(judged, i, explanation) for i, explanation in enumerate(explanations)]

        return Batcher(work, self.batch_size)

    def _verdict(self, judged: Judged, i: int) -> Verdict:
        try:
            verdict = self.deployed.verdict(judged, i)
        except InputError as e:
            self.metrics.images.labels("refused").inc()
            raise HTTPException(STATUS[BadImage], str(e)) from None
        self.metrics.images.labels("accepted" if verdict.accepted else "rejected").inc()
        return verdict


def create_app(
    deployed: Deployed,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: tuple[str, ...] | None = None,
    batch_size: int | None = None,
    decoders: int | None = None,
) -> FastAPI:
    """The service as an ASGI application, for any server of these.

    Args:
        deployed: as ``nescio.load`` gives it.
        limits: of requests.
        token: that clients must send as ``Authorization: Bearer TOKEN``; none by default.
        hosts: names that the service may be asked by; any by default. Where it listens to this machine alone, its own
            names keep web pages of others from reaching it through a name that they control.
        batch_size: images that go through the network together; 32 on a CPU, 256 on a GPU by default.
        decoders: processes that decode uploads; one per core, at most 8, by default.
    """
    service = Service(deployed, limits or Limits(), batch_size=batch_size, decoders=decoders)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="nescio",
        version=nescio.__version__,
        description="Detects images that a classifier was not trained for.",
        lifespan=lifespan,
        docs_url=None,  # it would load scripts of others
        redoc_url=None,
        # checked before a body is read; this describes it
        dependencies=[] if token is None else [Depends(HTTPBearer(auto_error=False))],
        responses=problems() if token is None else problems(NO_TOKEN),
    )
    app.state.service = service
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_pages(app)
    _add_endpoints(app, service)
    app.add_middleware(
        Gate,
        limits=service.limits,
        path=PREDICT,
        token=token,
        hosts=hosts,
        free=FREE,
        on_answer=service.metrics.request,
        on_count=service.metrics.running.set,
    )
    return app


def _add_endpoints(app: FastAPI, service: Service) -> None:
    @app.post(PREDICT, responses=problems(400, FOREIGN, LATE, TOO_LARGE, 415, 422, 500, BUSY))
    async def predict(
        request: Request,
        images: Annotated[list[UploadFile], File(description="Encoded images: JPEG, PNG, WebP, …")],
        explain: Annotated[bool, Query(description="Add the nearest class and the patch maps.")] = False,
        count: Annotated[bool, Query(description="Include the images in the test for a change of the input.")] = True,
    ) -> Answer:
        """Verdicts on images. If one of them cannot be read, all are refused, and the reason names it."""
        client = client_of(request.scope)
        return Answer(verdicts=await service.verdicts(images, explain=explain, count=count, client=client))

    @app.get("/health", responses=problems(BUSY))
    async def health() -> Status:
        """Whether the service lives; else it should be started again."""
        if not service.alive:
            raise HTTPException(BUSY, "the network is not running: try again later")
        return Status(status="alive")

    @app.get("/ready", responses=problems(BUSY))
    async def ready() -> Status:
        """Whether requests can be sent."""
        if not (service.alive and service.decode.ready):
            raise HTTPException(BUSY, "not ready", AGAIN)
        return Status(status="ready")

    @app.get("/info")
    async def info() -> dict[str, Any]:
        """The network, the detector, what its threshold promises, and the limits of requests."""
        transform = service.deployed.classifier.transform
        return {
            **service.about,
            "limits": vars(service.limits),
            "geometry": {"crop": transform.crop, "resize": transform.resize or transform.crop},
        }

    @app.get("/drift")
    async def drift() -> dict[str, Any]:
        """The last images beside the calibration images, and whether the input has changed."""
        return service.picture()

    @app.post("/drift/reset", responses=problems(FOREIGN))
    async def reset() -> dict[str, Any]:
        """Forget the images so far, and the alarms: the test begins anew. The answer is that of /drift."""
        service.forget()
        return service.picture()

    @app.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE_LATEST: {}}}})
    async def metrics() -> Response:
        """The same and more, for Prometheus."""
        return Response(generate_latest(service.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _add_pages(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(described(app.openapi()), headers=_HEADERS)

    folder = importlib.resources.files("nescio.serving") / "page"
    for path, (name, kind) in PAGES.items():
        content = (folder / name).read_bytes()
        app.add_api_route(path, _page(content, kind), include_in_schema=False)


def _page(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return page


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What FastAPI finds wrong with a request, in the form of all other refusals."""
    del request
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return refusal(422, "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in found) or str(error))


def serve(
    deployed: Deployed,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    limits: Limits | None = None,
    batch_size: int | None = None,
    decoders: int | None = None,
) -> None:
    """Run the service until it is told to end (SIGINT, SIGTERM): it takes no more requests then, and finishes the rest.

    Args:
        deployed: as ``nescio.load`` gives it.
        host: address to listen on; this machine alone by default.
        port: 0 for any that is free.
        token: as for ``create_app``.
        limits: of requests.
        batch_size: images that go through the network together.
        decoders: processes that decode uploads.

    Raises:
        InputError: the address cannot be listened on, or the network does not run.
    """
    limits, host = limits or Limits(), host.strip("[]")
    listening = _listening(host, port)
    alone = is_loopback(host)
    app = create_app(
        deployed,
        limits=limits,
        token=token,
        hosts=(*LOOPBACK, host) if alone else None,
        batch_size=batch_size,
        decoders=decoders,
    )
    if not alone and token is None:
        log.warning("anyone who can reach %s can use this service; require a token: token= (--token)", host)
    connections = possible_connections()
    if connections < CONNECTIONS:
        log.warning(
            "this process may open only a few files (ulimit -n), so it accepts at most %d connections at a time",
            connections,
        )
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        limit_concurrency=connections,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=round(limits.seconds),
        backlog=4 * limits.requests,
    )
    logging.getLogger("uvicorn.error").addFilter(Seldom())
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # to end as with Ctrl-C
    server = _Server(config, f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}")
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn has ended in order, and hands the signal on
        log.info("stopped")
    except SystemExit:
        raise InputError("the service did not start; the messages above give the reason") from None
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """Says where it is to be found once it is."""

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self.address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info("serving at %s (page), %s/docs (API); Ctrl-C stops it", self.address, self.address)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as e:
        why = getattr(e, "strerror", None) or e
        raise InputError(f"{host}:{port} is not available: {why}; give another (--host, --port)") from None
