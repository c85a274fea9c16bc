"""The provider's HTTP server, as an ASGI application and as a thread with a socket of its own."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import uvicorn
from starlette.requests import Request

from . import anthropic_wire, openai_wire
from .anthropic_batches import AnthropicBatches
from .asgi import HANG_S, Cut, Receive, Send, begin, hang_up, send_json, send_whole
from .batches import Batches
from .billing import partial_bill
from .http_batches import BatchEndpoints, respond
from .model import PromptCache, refused_breakpoints, reply, tokens
from .openai_batches import OpenAIBatches
from .script import Fault, Reply, Script, Seen

_HTML_PAGE = b"<html>Welcome to the hotel's network</html>"
_PATHS = {"/v1/chat/completions": "openai", "/v1/messages": "anthropic"}
_WIRES: dict[str, Any] = {"openai": openai_wire, "anthropic": anthropic_wire}


class ProviderApp:
    """ASGI application. keys: those accepted; any where None."""

    def __init__(self, keys: Iterable[str] | None = None) -> None:
        self.keys = None if keys is None else frozenset(keys)
        self.script = Script()
        self.cache = PromptCache()
        self.forget_batches()

    def forget_batches(self) -> None:
        batches = Batches(self.script, lambda seen, answer: self._usage(seen, answer, None))
        openai = OpenAIBatches(batches)
        self._batches: dict[str, tuple[str, BatchEndpoints]] = {
            "/v1/files": ("openai", openai),
            "/v1/batches": ("openai", openai),
            "/v1/messages/batches": ("anthropic", AnthropicBatches(batches)),
        }

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        for path, (api, endpoints) in self._batches.items():
            if f"{scope['path']}/".startswith(f"{path}/"):
                request = Request(scope, receive)
                await respond(endpoints, _WIRES[api], self.script, self.keys, request, send)
                return
        seen = await self._arrived(scope, receive)
        if seen is None:
            await send_json(send, 404, {"error": {"message": "no such path"}})
            return
        script = self.script
        script.in_flight += 1
        seen.in_flight = script.in_flight
        ended = False

        def end() -> None:
            nonlocal ended
            script.in_flight -= not ended
            ended = True

        async def sent(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                # Before the last byte: once the client has it, it may send its next request.
                end()
            await send(message)

        watch = asyncio.ensure_future(_watch(receive, seen))
        work = asyncio.ensure_future(self._respond(seen, sent, send))
        try:
            await asyncio.wait({watch, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                with contextlib.suppress(ConnectionError):
                    work.result()
            else:
                if seen.usage is not None and not seen.completed:
                    made_tokens = seen.sent_tokens + script.run_ahead_tokens
                    seen.billed = partial_bill(seen, made_tokens)
                seen.disconnected = True
        finally:
            end()
            watch.cancel()
            work.cancel()

    async def _arrived(self, scope: dict[str, Any], receive: Receive) -> Seen | None:
        data = b""
        while True:
            message = await receive()
            data += message.get("body", b"")
            if not message.get("more_body"):
                break
        api = _PATHS.get(scope["path"])
        if api is None:
            return None
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        text = data.decode()
        seen = Seen(api, headers, json.loads(text), text, key)  # type: ignore[arg-type]
        self.script.seen.append(seen)
        return seen

    async def _respond(self, seen: Seen, send: Send, direct: Any) -> None:
        wire = _WIRES[seen.api]
        fault = self.script.fault_of(seen)
        if fault is None and self.keys is not None and seen.key not in self.keys:
            message = "Incorrect API key provided: {key}."
            fault = Fault("status", 401, "invalid_api_key", message)
        refusal = refused_breakpoints(seen.body) if seen.api == "anthropic" else None
        if refusal is not None:
            fault = Fault("status", 400, "", refusal)
        if fault is not None and not fault.worked and await self._instead(fault, seen, send):
            return
        answer = reply(seen, self.script.answer(seen))
        usage = self._usage(seen, answer, fault)
        number = len(self.script.seen)
        if fault is not None and await self._after_work(fault, seen, send, direct):
            return
        if not seen.streamed:
            seen.billed = seen.usage
        if seen.streamed:
            if fault is not None and fault.kind in ("empty_choices", "truncated"):
                await _stream(send, [], None, wire, seen)
            else:
                await _stream(send, wire.events(seen, answer, usage, number), fault, wire, seen)
                seen.billed = seen.usage
        else:
            await self._whole(wire.whole(seen, answer, usage, number), fault, seen, send)
        seen.completed = True

    async def _after_work(self, fault: Fault, seen: Seen, send: Send, direct: Any) -> bool:
        """Keep the answer that was made from the client, if the fault is of that kind."""
        if fault.kind == "raw" and fault.status >= 400 and not fault.worked:
            seen.usage = None
        else:
            seen.usage = seen.usage if fault.bill is None else fault.bill or None
            seen.billed = seen.usage
        if fault.kind == "raw":
            await _raw(send, fault, seen)
            if fault.aborts:
                hang_up(direct)
            await send({"type": "http.response.body", "body": b""})
        elif fault.worked:
            await self._instead(fault, seen, send)
        elif fault.kind == "hang":
            await asyncio.sleep(HANG_S)
        elif fault.kind == "hang_up":
            hang_up(direct)
        else:
            return False
        return True

    async def _instead(self, fault: Fault, seen: Seen, send: Send) -> bool:
        """Do what comes instead of an answer, if the fault is of that kind."""
        match fault.kind:
            case "status":
                message = fault.message.replace("{key}", seen.key)
                document = _WIRES[seen.api].error(fault.status, fault.code, message)
                await send_json(send, fault.status, document, fault.headers)
            case "html":
                await send_whole(send, 200, _HTML_PAGE, "text/html")
                seen.completed = True
            case "slow":
                await asyncio.sleep(fault.delay_s)
                return False
            case _:
                return False
        return True

    async def _whole(
        self, document: dict[str, Any], fault: Fault | None, seen: Seen, send: Send
    ) -> None:
        data = json.dumps(document).encode()
        match fault.kind if fault else None:
            case "malformed":
                data = b'{"id": oops'
            case "truncated":
                data = data[: len(data) // 2]
            case "empty_choices":
                empty: dict[str, Any] = (
                    {"choices": []} if seen.api == "openai" else {"content": None}
                )
                data = json.dumps({**document, **empty}).encode()
            case "hang_mid_stream" | "cut" | "end_early" | "error_event":
                seen.completed = True
                await begin(send, 200, "application/json")
                half = {"type": "http.response.body", "body": data[: len(data) // 2]}
                await send({**half, "more_body": True})
                if fault and fault.kind == "hang_mid_stream":
                    await asyncio.sleep(HANG_S)
                raise Cut
        await send_whole(send, 200, data, "application/json")

    def _usage(self, seen: Seen, answer: Reply, fault: Fault | None) -> Any:
        said = answer.text + "".join(c.name + json.dumps(c.arguments) for c in answer.calls)
        count = self.cache.openai_usage if seen.api == "openai" else self.cache.anthropic_usage
        usage = count(seen, tokens(said), answer.reasoning_tokens)
        if seen.api == "anthropic":
            usage["service_tier"] = answer.service_tier or (
                "batch" if seen.batch_id else "standard"
            )
        seen.usage = usage
        match fault.kind if fault else None:
            case "no_usage":
                return None
            case "negative_usage":
                return {n: -7 if isinstance(v, int) else v for n, v in usage.items()}
            case "inconsistent_usage":
                many = 10**6
                return {
                    **usage,
                    "prompt_tokens_details": {"cached_tokens": many, "cache_write_tokens": many},
                    "completion_tokens_details": {"reasoning_tokens": many},
                    "output_tokens_details": {"thinking_tokens": many},
                }
        return usage


async def _raw(send: Send, fault: Fault, seen: Seen) -> None:
    kind = "text/event-stream" if seen.streamed else "application/json"
    await begin(send, fault.status, kind, fault.headers)
    for piece in fault.body:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        # Pieces arrive one by one.
        await asyncio.sleep(fault.delay_s)
    # Before the last byte: the client may act on it at once.
    seen.completed = seen.billed is not None


async def _stream(
    send: Send, events: list[bytes], fault: Fault | None, wire: Any, seen: Seen
) -> None:
    await begin(send, 200, "text/event-stream")
    for number, event in enumerate(events):
        if fault is not None and number == fault.after_events:
            match fault.kind:
                case "hang_mid_stream":
                    await asyncio.sleep(HANG_S)
                case "cut":
                    raise Cut
                case "end_early":
                    break
                case "malformed":
                    event = event.replace(b'"', b"", 3).replace(b"}", b"", 1)
                case "error_event":
                    event = wire.error_event(fault.code, fault.message)
        if fault is not None and fault.kind == "slow":
            await asyncio.sleep(fault.delay_s)
        await send({"type": "http.response.body", "body": event, "more_body": True})
        seen.sent_tokens += tokens(wire.text_in(event))
        if fault is not None and fault.kind == "error_event" and number == fault.after_events:
            break
    await send({"type": "http.response.body", "body": b""})


async def _watch(receive: Receive, seen: Seen) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ProviderServer:
    """The provider on a free port of 127.0.0.1, in a thread. Use as a context manager."""

    def __init__(self, keys: Iterable[str] | None = None) -> None:
        self.app = ProviderApp(keys)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            lifespan="off",
            log_config=None,
            log_level=60,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    @property
    def script(self) -> Script:
        return self.app.script

    @property
    def url(self) -> str:
        """Base URL for Anthropic's format; OpenAI's has `/v1` behind it."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "ProviderServer":
        self._thread.start()
        until = time.monotonic() + 60
        while not self._server.started:
            if time.monotonic() > until:
                raise TimeoutError("the test provider did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(timeout=60)
        self._socket.close()

    def reset(self) -> None:
        """Forget faults, requests, cached prompts and batches."""
        self.script.reset()
        self.app.cache = PromptCache()
        self.app.forget_batches()
