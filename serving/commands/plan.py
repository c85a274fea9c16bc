"""`narrowgate plan`: replicas, GPU hours and cost of a load, with the arithmetic."""

import argparse
import json
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.host.numbers import decimal_number, whole_number

if TYPE_CHECKING:
    from serving.kubernetes.capacity import Capacity, Plan

HELP = "estimate replicas, GPU hours and cost of a load on GPUs"

_GPUS = ("a10g", "l4", "l40s")
_PRECISIONS = ("16bit", "int8", "int4")
_MOST_TOKENS = 1_000_000
_LEAST_RATE, _MOST_RATE = Decimal("0.001"), Decimal(1_000_000)
_MOST_HOUR_USD = Decimal(10_000)
_MOST_SPARES = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--rps", type=decimal_number, required=True, metavar="N",
        help="requests a second at the busiest hour",
    )  # fmt: skip
    parser.add_argument("--gpu", choices=_GPUS, default="a10g", help="card (a10g)")
    parser.add_argument(
        "--precision", choices=_PRECISIONS, default="int8", help="weights of the model (int8)"
    )
    parser.add_argument(
        "--input-tokens", type=whole_number, default=300, metavar="N", help="of a request (300)"
    )
    parser.add_argument(
        "--shared-tokens", type=whole_number, default=250, metavar="N",
        help="of the input, equal in every request: instruction, labels, examples (250)",
    )  # fmt: skip
    parser.add_argument(
        "--output-tokens", type=whole_number, default=1, metavar="N", help="of an answer (1)"
    )
    parser.add_argument(
        "--measured-rps", type=decimal_number, metavar="N",
        help="requests a second that one replica was measured at; replaces the estimate",
    )  # fmt: skip
    parser.add_argument(
        "--headroom", type=decimal_number, default=Decimal("0.3"), metavar="SHARE",
        help="share of a replica's rate that is kept free (0.3)",
    )  # fmt: skip
    parser.add_argument(
        "--spare", type=whole_number, default=1, metavar="N",
        help="replicas that may be lost without loss of capacity (1)",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-hour-usd",
        type=decimal_number,
        metavar="USD",
        help="price of the node an hour, US dollars (its list price)",
    )
    parser.add_argument(
        "--coverage", type=decimal_number, default=Decimal("0.7"), metavar="SHARE",
        help="share of inputs whose local answer is taken; the rest is paid twice (0.7)",
    )  # fmt: skip
    parser.add_argument(
        "--frontier-model", metavar="PROVIDER/MODEL", help="model whose price is compared"
    )
    parser.add_argument(
        "--prices-file",
        type=Path,
        metavar="FILE",
        help="your prices (YAML), before the built-in table's",
    )


def run(args: argparse.Namespace) -> int:
    """Print the plan. Raises InvalidRequest for values outside their range, UnpricedModel."""
    from serving.kubernetes.capacity import GPUS, plan

    _check(args)
    capacity = _capacity(args)
    gpu = GPUS[args.gpu]
    hour_usd = gpu.hour_usd if args.gpu_hour_usd is None else args.gpu_hour_usd
    price, price_source = _frontier_request(args)
    found = plan(
        float(args.rps),
        capacity,
        hour_usd,
        headroom=float(args.headroom),
        spare=args.spare,
        coverage=float(args.coverage),
        frontier_request_usd=price,
    )
    assumptions = [
        f"card and node: {gpu.source}"
        if args.gpu_hour_usd is None
        else f"card: {gpu.source}; node at {hour_usd} USD an hour as given",
        "model: Llama-3-8B; the embedding and the output head stay in 16 bits",
        "traffic is constant at --rps; a night without traffic costs the same",
        f"coverage {args.coverage}: not known before the traffic has been seen",
        "not counted: gateway and head nodes, database, network, audits, cached answers",
    ]
    if price_source:
        assumptions.append(f"frontier price: {price_source}, no prompt caching")
    if capacity.bound != "measured":
        card = args.gpu.upper()
        assumptions.append(f"the rate of a replica is an estimate; no {card} was measured")
    if args.json:
        print(json.dumps(_document(found, assumptions)))
    else:
        _print(args, found, assumptions)
    return 0


_RATE = f"{_LEAST_RATE} to {_MOST_RATE} requests a second"


def _is_rate(value: Decimal) -> bool:
    return _LEAST_RATE <= value <= _MOST_RATE


def _check(args: argparse.Namespace) -> None:
    from serving.contracts.errors import InvalidRequest

    rules = [
        ("rps", _is_rate(args.rps), args.rps, _RATE),
        ("measured_rps", args.measured_rps is None or _is_rate(args.measured_rps),
         args.measured_rps, _RATE),
        ("headroom", args.headroom <= Decimal("0.9"), args.headroom, "a share from 0 to 0.9"),
        ("gpu_hour_usd", args.gpu_hour_usd is None or args.gpu_hour_usd <= _MOST_HOUR_USD,
         args.gpu_hour_usd, f"0 to {_MOST_HOUR_USD} US dollars"),
        ("coverage", args.coverage <= 1, args.coverage, "a share from 0 to 1"),
        ("input_tokens", 1 <= args.input_tokens <= _MOST_TOKENS, args.input_tokens,
         f"1 to {_MOST_TOKENS} tokens"),
        ("output_tokens", 1 <= args.output_tokens <= _MOST_TOKENS, args.output_tokens,
         f"1 to {_MOST_TOKENS} tokens"),
        ("shared_tokens", args.shared_tokens < args.input_tokens, args.shared_tokens,
         "fewer tokens than the input has"),
        ("spare", args.spare <= _MOST_SPARES, args.spare, f"0 to {_MOST_SPARES} replicas"),
    ]  # fmt: skip
    for field, holds, value, wanted in rules:
        if not holds:
            option = "--" + field.replace("_", "-")
            # As it was written: 0.000001, not 1E-6.
            shown = f"{value:f}" if isinstance(value, Decimal) else value
            raise InvalidRequest(f"{option} is {shown}", field=field, fix=f"give {wanted}")


def _capacity(args: argparse.Namespace) -> "Capacity":
    from serving.kubernetes.capacity import GPUS, LLAMA_3_8B, Workload, estimate, measured

    if args.measured_rps is not None:
        return measured(float(args.measured_rps))
    work = Workload(args.input_tokens, args.shared_tokens, args.output_tokens)
    return estimate(GPUS[args.gpu], LLAMA_3_8B, args.precision, work)


def _frontier_request(args: argparse.Namespace) -> tuple[Decimal | None, str | None]:
    """Return what one request costs at the frontier model, and where its price is from."""
    if args.frontier_model is None:
        return None, None
    from serving.contracts.answer import Usage
    from serving.contracts.errors import UnpricedModel
    from serving.contracts.prices import STANDARD
    from serving.ledger.pricing.book import PriceBook

    prices = PriceBook.load(args.prices_file).of(args.frontier_model)
    if prices is None:
        raise UnpricedModel(
            f"no price of {args.frontier_model!r} is known",
            field="frontier_model",
            fix="name it as provider/model, or give its price with --prices-file",
        )
    # Long inputs cost more at some providers.
    usage = Usage(uncached_input_tokens=args.input_tokens, output_tokens=args.output_tokens)
    cost = prices.applied(usage, STANDARD).step.prices.cost(usage)
    return cost, f"{args.frontier_model} ({prices.source})"


def _document(found: "Plan", assumptions: list[str]) -> dict[str, Any]:
    def money(value: Decimal | None) -> str | None:
        return None if value is None else f"{value:.2f}"

    return {
        "rps": found.rps,
        "replicas": found.replicas,
        "needed": found.needed,
        "spare": found.spare,
        "requests_per_s_a_replica": round(found.capacity.requests_per_s, 2),
        "bound_by": found.capacity.bound,
        "concurrent": found.capacity.concurrent,
        "utilisation": round(found.utilisation, 3),
        "gpu_hours_a_month": found.gpu_hours_a_month,
        "month_usd": money(found.month_usd),
        "usd_per_million": {
            "local": money(found.local_usd),
            "frontier": money(found.frontier_usd),
            "blended": money(found.blended_usd),
        },
        "break_even_rps": found.break_even_rps,
        "arithmetic": list(found.capacity.arithmetic),
        "assumptions": assumptions,
    }


def _print(args: argparse.Namespace, found: "Plan", assumptions: list[str]) -> None:
    kind = "measured" if found.capacity.bound == "measured" else "estimated"
    print(f"{found.replicas} replicas on {args.gpu}: {found.needed} needed, {found.spare} spare")
    print(
        f"one replica: {found.capacity.requests_per_s:.1f} requests/s ({kind}); "
        f"utilisation {found.utilisation:.0%} of the needed ones"
    )
    print(f"{found.gpu_hours_a_month:,} GPU hours and {found.month_usd:,.0f} USD a month")
    print(f"{found.local_usd:,.2f} USD per million requests on the GPUs")
    if found.frontier_usd is not None and found.blended_usd is not None:
        saving = 1 - found.blended_usd / found.frontier_usd if found.frontier_usd else Decimal(0)
        print(
            f"{found.frontier_usd:,.2f} USD per million at {args.frontier_model}; "
            f"{found.blended_usd:,.2f} with both at coverage {args.coverage} ({saving:+.0%})"
        )
        if found.break_even_rps is not None:
            print(f"these replicas cost less from {found.break_even_rps:,.1f} requests/s on")
    for title, lines in (("arithmetic", found.capacity.arithmetic), ("assumptions", assumptions)):
        print(f"{title}:")
        for line in lines:
            print(f"  {line}")
