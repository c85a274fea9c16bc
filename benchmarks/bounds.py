"""`python -m benchmarks bounds`: how many output tokens the default bounds save at a model."""

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands.options import add_settings_options, settings_from
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    from serving.contracts.frontier import OutputBounds
    from serving.contracts.routing import Tier

HELP = "record a model's answers with and without the default output bounds, and compare tokens"
_UNBOUNDED_TOKENS = 4096
_RESAMPLES = 2000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument(
        "--base-url", required=True, metavar="URL", help="OpenAI-compatible server, with /v1"
    )
    parser.add_argument("--model", required=True, help="as the server names it")
    parser.add_argument("--api-key", default="unused", help="for the server (unused)")
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE", help='JSON Lines of {"text": ...}'
    )
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight (4)")
    parser.add_argument("--limit", type=int, default=50, help="prompts (50)")
    parser.add_argument("--tier", choices=("economy", "standard", "frontier"), default="standard")
    parser.add_argument(
        "--unbounded-tokens", type=int, default=_UNBOUNDED_TOKENS,
        help=f"limit of the answers without bounds ({_UNBOUNDED_TOKENS})",
    )  # fmt: skip
    parser.add_argument("--record", type=Path, metavar="FILE", help="write every pair of counts")


@dataclass(frozen=True, slots=True)
class Pair:
    """Output tokens of one prompt, and why each answer ended."""

    prompt: str
    unbounded_tokens: int
    unbounded_finish: str
    bounded_tokens: int
    bounded_finish: str


@dataclass(frozen=True, slots=True)
class Saving:
    """The share of output tokens saved, with 95 % bootstrap bounds over prompts.

    cut: share of bounded answers that the hard limit cut; unbounded_cut: the same without bounds.
    """

    prompts: int
    unbounded_tokens: int
    bounded_tokens: int
    saved: float
    saved_lower: float
    saved_upper: float
    cut: float
    unbounded_cut: float


def run(args: argparse.Namespace) -> int:
    """Ask, record and report. Exit status 0; figures are reported, not judged."""
    from serving.pipeline.plan import free_form_bounds

    settings = settings_from(args)
    tier: Tier = args.tier
    bounds = free_form_bounds(settings.frontier)[tier]
    pairs = _recorded(args, bounds)
    if args.record is not None:
        lines = "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs)
        args.record.write_text(lines, encoding="utf-8")
    found = saving(pairs)
    if args.json:
        print(json.dumps({"model": args.model, "tier": tier, **asdict(found)}))
        return 0
    print(
        f"{args.model}, {found.prompts} prompts, tier {tier}: {found.unbounded_tokens} output "
        f"tokens without bounds, {found.bounded_tokens} with: {found.saved:.1%} saved "
        f"({found.saved_lower:.1%} to {found.saved_upper:.1%}); cut by the limit: "
        f"{found.cut:.0%} with, {found.unbounded_cut:.0%} without"
    )
    return 0


def saving(pairs: Sequence[Pair], *, seed: int = 0) -> Saving:
    """Return what the bounds save over pairs. Raises ValueError for none."""
    if not pairs:
        raise ValueError("there is nothing to compare")
    draw = random.Random(seed)  # noqa: S311  # a bootstrap
    found = sorted(_saved(draw.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLES))
    return Saving(
        prompts=len(pairs),
        unbounded_tokens=sum(pair.unbounded_tokens for pair in pairs),
        bounded_tokens=sum(pair.bounded_tokens for pair in pairs),
        saved=_saved(pairs),
        saved_lower=found[int(0.025 * _RESAMPLES)],
        saved_upper=found[int(0.975 * _RESAMPLES)],
        cut=statistics.mean(pair.bounded_finish == "length" for pair in pairs),
        unbounded_cut=statistics.mean(pair.unbounded_finish == "length" for pair in pairs),
    )


def _saved(pairs: Sequence[Pair]) -> float:
    before = sum(pair.unbounded_tokens for pair in pairs)
    return 1.0 - sum(pair.bounded_tokens for pair in pairs) / before if before else 0.0


def _recorded(args: argparse.Namespace, bounds: "OutputBounds") -> list[Pair]:
    from openai import OpenAI

    from serving.frontier.bounds import bounded

    client = OpenAI(base_url=args.base_url, api_key=args.api_key, timeout=600)
    lines = args.prompts.read_text(encoding="utf-8").splitlines()[: args.limit]

    def pair(line: str) -> Pair:
        text = json.loads(line)["text"]
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        free = _ask(client, args.model, {**body, "max_tokens": args.unbounded_tokens})
        return Pair(text, *free, *_ask(client, args.model, bounded(body, bounds)))

    with terminal_progress() as progress, ThreadPoolExecutor(args.concurrency) as pool:
        return list(progress.track(pool.map(pair, lines), len(lines), description="asking"))


def _ask(client: Any, model: str, body: dict[str, Any]) -> tuple[int, str]:
    answer = client.chat.completions.create(model=model, temperature=0, **body)
    return answer.usage.completion_tokens, answer.choices[0].finish_reason
