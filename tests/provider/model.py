"""The model behind the provider: deterministic answers, tokens by characters, a prompt cache."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .script import Reply, Seen, ToolCall

CHARS_PER_TOKEN = 4
MIN_CACHED = 1024
MIN_CACHED_OF = {"claude-haiku-4-5": 4096, "claude-opus-4-5": 4096, "claude-3-haiku": 2048}
MAX_BREAKPOINTS = 4
LOOKBACK = 20
BLOCK = 128
OPENAI_TTL_S = 300.0
TTL_S = {"5m": 300.0, "1h": 3600.0}


def tokens(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)


def minimal(schema: dict[str, Any]) -> Any:
    """Return the least instance of a JSON schema, near enough for tests."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for several in ("anyOf", "oneOf", "allOf"):
        if schema.get(several):
            return minimal(schema[several][0])
    match schema.get("type"):
        case "object":
            names = schema.get("required", [])
            return {name: minimal(schema.get("properties", {}).get(name, {})) for name in names}
        case "array":
            return [minimal(schema.get("items", {}))] * int(schema.get("minItems", 0))
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return "x" * int(schema.get("minLength", 1))


def reply(seen: Seen, told: Reply | str | None) -> Reply:
    """Return the model's text: the scripted one, else one that fits the request."""
    if isinstance(told, str):
        told = Reply(told)
    limit = seen.body.get("max_completion_tokens") or seen.body.get("max_tokens") or 10**6
    made = told if told is not None else _made(seen)
    if not made.calls and tokens(made.text) > limit:
        return Reply(made.text[: limit * CHARS_PER_TOKEN], finish="length")
    return made


def _made(seen: Seen) -> Reply:
    body = seen.body
    tool = _forced_tool(body)
    if tool is not None:
        schema = tool.get("parameters") or tool.get("input_schema") or {"type": "object"}
        return Reply(calls=(ToolCall(tool["name"], minimal(schema)),), finish="tool_calls")
    form = (body.get("response_format") or {}).get("json_schema") or (
        body.get("output_config") or {}
    ).get("format")
    if form:
        return Reply(json.dumps(minimal(form["schema"])))
    if (body.get("response_format") or {}).get("type") == "json_object":
        return Reply("{}")
    digest = hashlib.sha256(json.dumps(body["messages"], sort_keys=True).encode()).hexdigest()
    return Reply(f"An answer to request {digest[:12]}, in a few words.")


def _forced_tool(body: dict[str, Any]) -> dict[str, Any] | None:
    choice, tools = body.get("tool_choice"), body.get("tools") or []
    functions: list[dict[str, Any]] = [tool.get("function", tool) for tool in tools]
    if choice == "required" or choice == {"type": "any"}:
        return functions[0] if functions else None
    if isinstance(choice, dict) and choice.get("type") in ("function", "tool"):
        name = choice.get("name") or choice["function"]["name"]
        return next(f for f in functions if f["name"] == name)
    return None


@dataclass
class PromptCache:
    """The prompts in the provider's cache, by key and model.

    entries: when each prefix expires, and its time to live. prompts: with the time of their last
    use.
    """

    clock: Callable[[], float] = time.monotonic
    entries: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    prompts: dict[tuple[str, str, str], dict[str, float]] = field(default_factory=dict)

    def anthropic_usage(self, seen: Seen, output: int, reasoning: int) -> dict[str, Any]:
        """Reads the longest live prefix within 20 blocks before a breakpoint; writes the rest.

        Only breakpoints write, each for its own time. A prefix under the model's minimum is neither
        read nor written. A read renews the time to live.
        """
        blocks = anthropic_blocks(seen.body)
        ends = _block_ends(blocks)
        least = next((n for m, n in MIN_CACHED_OF.items() if seen.model.startswith(m)), MIN_CACHED)
        marks = [
            (n, block["cache_control"].get("ttl", "5m"))
            for n, block in enumerate(blocks)
            if block.get("cache_control") and tokens_of(ends[n][0]) >= least
        ]
        now, read, written = self.clock(), 0, {"5m": 0, "1h": 0}
        for n, _ in marks:
            for before in range(n, max(-1, n - LOOKBACK), -1):
                place = (seen.key, seen.model, ends[before][1])
                until, ttl_s = self.entries.get(place, (-1.0, 0.0))
                if until >= now:
                    self.entries[place] = (now + ttl_s, ttl_s)
                    read = max(read, tokens_of(ends[before][0]))
                    break
        done = read
        for n, ttl in marks:
            if tokens_of(ends[n][0]) > done:
                written[ttl] += tokens_of(ends[n][0]) - done
                done = tokens_of(ends[n][0])
                self.entries[seen.key, seen.model, ends[n][1]] = (now + TTL_S[ttl], TTL_S[ttl])
        wrote = sum(written.values())
        return {
            "input_tokens": tokens_of(ends[-1][0]) - read - wrote,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": wrote,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written["5m"],
                "ephemeral_1h_input_tokens": written["1h"],
            },
            "output_tokens": output + reasoning,
            "output_tokens_details": {"thinking_tokens": reasoning},
        }

    def openai_usage(self, seen: Seen, output: int, reasoning: int) -> dict[str, Any]:
        """Reads the longest prefix of a recent prompt, in blocks. gpt-6 reports writes."""
        text = json.dumps(seen.body.get("tools", "")) + json.dumps(seen.body["messages"])
        count = tokens(text)
        place = (seen.key, seen.model, seen.body.get("prompt_cache_key", ""))
        now = self.clock()
        known = self.prompts.setdefault(place, {})
        live = [prompt for prompt, at_s in known.items() if now - at_s <= OPENAI_TTL_S]
        shared = max((_shared(text, prompt) for prompt in live), default=0) // CHARS_PER_TOKEN
        read = shared // BLOCK * BLOCK if shared >= MIN_CACHED else 0
        details = {"cached_tokens": read, "audio_tokens": 0}
        if count >= MIN_CACHED:
            known[text] = now
            if seen.model.startswith("gpt-6"):
                details["cache_write_tokens"] = max(0, count // BLOCK * BLOCK - read)
        return {
            "prompt_tokens": count,
            "completion_tokens": output + reasoning,
            "total_tokens": count + output + reasoning,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }


def refused_breakpoints(body: dict[str, Any]) -> str | None:
    """Return why Anthropic refuses the request's breakpoints, if it does."""
    controls = [b["cache_control"] for b in anthropic_blocks(body) if b.get("cache_control")]
    times = [control.get("ttl", "5m") for control in controls]
    if len(times) > MAX_BREAKPOINTS:
        return f"A maximum of 4 blocks with cache_control may be provided. Found {len(times)}."
    if "1h" in times[times.index("5m") if "5m" in times else len(times) :]:
        return "a ttl='1h' cache_control block must not come after a ttl='5m' block"
    return None


def tokens_of(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)


def _block_ends(blocks: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Return for each block the characters up to its end, and their digest."""
    digest, chars, ends = hashlib.sha256(), 0, []
    for block in blocks:
        text = json.dumps({n: v for n, v in block.items() if n != "cache_control"})
        digest.update(text.encode())
        chars += len(text)
        ends.append((chars, digest.hexdigest()))
    return ends


def anthropic_blocks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return tools, system and messages as blocks, in the order in which they are cached."""
    blocks = [dict(tool) for tool in body.get("tools", [])]
    contents = [body.get("system", []), *(m["content"] for m in body["messages"])]
    for content in contents:
        blocks += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return blocks


def _shared(left: str, right: str) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
