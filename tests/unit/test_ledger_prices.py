"""The cost of tokens and replicas: the real table, the operator's file, the arithmetic."""

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
from genai_prices.types import Usage as TableUsage
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import insert, select

from serving.contracts.answer import Usage
from serving.contracts.errors import InvalidSettings, UnpricedModel
from serving.contracts.frontier_settings import FrontierSettings
from serving.contracts.prices import (
    DEAREST,
    MIN_CACHED_TOKENS,
    PICODOLLAR,
    ModelPrices,
    PriceStep,
    TokenPrices,
    input_tokens,
)
from serving.ledger.database import Database, database_url
from serving.ledger.pricing.book import PriceBook
from serving.ledger.pricing.cost import (
    Price,
    Pricing,
    check_priced,
    picodollars,
    replica_cost_usd,
    replica_us,
)
from serving.ledger.pricing.file import load_price_file
from serving.ledger.pricing.table import PriceTable
from serving.ledger.schema import metadata
from serving.ledger.schema import prices as prices_table

from .frontier_kit import SONNET, dollars_a_million

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SONNET_5_5, HAIKU = "anthropic/claude-sonnet-5-5", "anthropic/claude-haiku-5-5"
OPUS, ASTRA, LUNA = "anthropic/claude-opus-5-5", "openai/gpt-6-astra", "openai/gpt-5.6-luna"

COUNT = st.integers(0, 2_000_000)
USAGES = st.builds(
    Usage,
    uncached_input_tokens=COUNT,
    cache_read_tokens=COUNT,
    cache_write_5m_tokens=COUNT,
    cache_write_1h_tokens=COUNT,
    output_tokens=COUNT,
    reasoning_tokens=COUNT,
)
MTOK = st.integers(0, 10**9).map(lambda micros: Decimal(micros).scaleb(-12))
PRICES = st.builds(TokenPrices, *[MTOK] * 5)
STEPS = st.builds(
    lambda first, rest: tuple(PriceStep(n, p) for n, p in sorted({0: first, **rest}.items())),
    PRICES,
    st.dictionaries(st.integers(1, 10**7), PRICES, max_size=3),
)
TIERS = st.sampled_from([None, "default", "standard", "auto", "flex", "Batch", "priority", "new"])
MODELS = st.builds(
    lambda standard, tiers: ModelPrices("house/m", "test", standard, tiers),
    STEPS,
    st.dictionaries(st.sampled_from(["flex", "batch", "priority"]), STEPS),
)


@cache
def real_table() -> PriceTable:
    return PriceTable()


@cache
def real_book() -> PriceBook:
    return PriceBook({}, real_table(), lambda: NOW)


def of(name: str, at: datetime = NOW) -> ModelPrices:
    found = real_book().of(name, at)
    assert found is not None
    return found


def using(uncached: int = 0, output: int = 0, **more: int) -> Usage:
    return Usage(uncached_input_tokens=uncached, output_tokens=output, **more)


def plus(first: Usage, second: Usage) -> Usage:
    names = Usage.model_fields
    return Usage(**{name: getattr(first, name) + getattr(second, name) for name in names})


def test_every_default_model_has_a_price() -> None:
    models = [model for tier in FrontierSettings().tiers.values() for model in tier]
    for model in models:
        base = of(model).base
        assert 0 < base.cache_read < base.uncached_input <= base.cache_write_5m
        assert base.cache_write_5m <= base.cache_write_1h
    check_priced(models, real_book())


def test_prices_are_those_of_the_table() -> None:
    assert of(SONNET_5_5) == ModelPrices(
        SONNET_5_5,
        real_table().source,
        (PriceStep(0, SONNET),),
        {"batch": (PriceStep(0, dollars_a_million("1", "0.05", "1.25", "2", "5")),)},
    )
    old = of("openai/gpt-4o").base
    assert old.cache_write_5m == old.cache_write_1h == old.uncached_input == Decimal("2.5e-6")
    assert real_book().of("openai/no-such-model") is None
    # The table knows these prices by other names of the provider: a guess, so none.
    assert real_book().of("my-openai/gpt-4o") is None


def test_every_model_of_the_table_can_be_read() -> None:
    providers = real_table()._providers.values()
    names = [f"{provider.id}/{model.id}" for provider in providers for model in provider.models]
    found = [prices for name in names if (prices := real_table().find(name, NOW)) is not None]
    assert len(found) > 1500


@pytest.mark.parametrize(
    ("model", "threshold", "times"), [(HAIKU, 100_000, 5), (ASTRA, 272_000, 2)]
)
def test_a_longer_prompt_costs_more_for_all_of_its_tokens(
    model: str, threshold: int, times: int
) -> None:
    prices = of(model)
    base = prices.base.uncached_input
    for length, over, price in [
        (threshold - 1, 0, base),
        (threshold, 0, base),
        (threshold + 1, threshold, times * base),
    ]:
        applied = prices.applied(using(length), None)
        assert (applied.service_tier, applied.step.over_input_tokens) == ("standard", over)
        assert applied.step.prices.cost(using(length)) == length * price
    # Every class of input counts for the length, and output does not.
    mixed = using(threshold - 2, cache_read_tokens=1, cache_write_5m_tokens=1)
    assert prices.applied(mixed, None).step.over_input_tokens == 0
    mixed = plus(mixed, using(0, cache_write_1h_tokens=1))
    assert prices.applied(mixed, None).step.over_input_tokens == threshold
    assert prices.applied(using(1, threshold * 2), None).step.over_input_tokens == 0


@given(st.sampled_from([SONNET_5_5, HAIKU, OPUS, ASTRA]), USAGES, st.sampled_from([None, "batch"]))
def test_costs_are_those_that_the_table_itself_works_out(
    model: str, usage: Usage, tier: str | None
) -> None:
    name, _, short = model.partition("/")
    provider = real_table()._providers[name]
    info = provider.find_model(short)
    assert info is not None
    # OpenAI has one price of writes, and the table counts 1-hour writes among all writes.
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    theirs = TableUsage(
        input_tokens=input_tokens(usage),
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=written,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_tokens=usage.output_tokens + usage.reasoning_tokens,
    )
    expected = info.calc_price(
        theirs,
        provider,
        genai_request_timestamp=NOW,
        price_context={"processing": tier} if tier else None,
    )
    priced = Pricing(real_book(), {}, model).frontier(model, usage, tier)
    assert priced.cost_usd == expected.total_price


@pytest.mark.parametrize("model", [SONNET_5_5, HAIKU, OPUS, ASTRA, LUNA])
def test_a_batch_costs_half(model: str) -> None:
    for length in (10, 500_000):
        usage = using(length, 3, cache_read_tokens=5, reasoning_tokens=2)
        pricing = Pricing(real_book(), {}, model)
        standard, batch = (pricing.frontier(model, usage, tier) for tier in (None, "batch"))
        assert 2 * batch.cost_usd == standard.cost_usd
        assert (batch.price.service_tier, standard.price.service_tier) == ("batch", "standard")


def test_a_class_that_a_tier_does_not_price_keeps_the_standard_price() -> None:
    prices = of("openai/gpt-4.1")
    (batch,) = prices.service_tiers["batch"]
    assert batch.prices.uncached_input * 2 == prices.base.uncached_input
    assert batch.prices.cache_read == prices.base.cache_read


@pytest.mark.parametrize(
    ("model", "tier", "applied_tier", "times"),
    [
        (ASTRA, None, "standard", 1),
        (ASTRA, "default", "standard", 1),
        (ASTRA, "auto", "standard", 1),
        (ASTRA, "scale", "standard", 1),
        (ASTRA, "priority", "priority", 2),
        (ASTRA, "PRIORITY", "priority", 2),
        (ASTRA, "flex", "flex", Decimal("0.5")),
        (ASTRA, "of next year", DEAREST, 2),
        (OPUS, "standard", "standard", 1),
        (OPUS, "priority", DEAREST, 1),
        ("openai/gpt-5.5-pro", "priority", DEAREST, 1),
    ],
)
def test_provider_names_of_service_tiers(
    model: str, tier: str | None, applied_tier: str, times: Decimal
) -> None:
    usage = using(100, 7, cache_read_tokens=9)
    priced = Pricing(real_book(), {}, model).frontier(model, usage, tier)
    assert priced.price.service_tier == applied_tier
    assert priced.cost_usd == times * of(model).base.cost(usage)


@given(MODELS, USAGES, TIERS)
def test_a_tier_without_prices_is_never_cheaper_than_one_with(
    prices: ModelPrices, usage: Usage, tier: str | None
) -> None:
    unknown = prices.applied(usage, "of next year").step.prices.cost(usage)
    assert unknown >= prices.applied(usage, tier).step.prices.cost(usage)


def test_prices_change_at_their_date_and_the_book_follows_the_clock() -> None:
    times = [datetime(2026, 7, 29, 23, 59, 59, tzinfo=UTC)]
    book = PriceBook({}, real_table(), lambda: times[-1])
    before = book.of(LUNA)
    times.append(datetime(2026, 7, 30, tzinfo=UTC))
    after = book.of(LUNA)
    assert before is not None
    assert after is not None
    assert (before.base.uncached_input, after.base.uncached_input) == (
        Decimal("1e-6"),
        Decimal("0.2e-6"),
    )
    # A call is priced as of its opening, also if it ends after midnight.
    assert book.of(LUNA, times[0]) == before
    assert book.of(LUNA) is after


def test_prices_that_change_within_the_day_do() -> None:
    def hour(hours: float) -> Decimal:
        at = NOW.replace(hour=0) + timedelta(hours=hours)
        return of("deepseek/deepseek-flash", at).base.uncached_input

    assert hour(0.99) * 2 == hour(1) == hour(3.99) == hour(4) * 2
    zoned = (NOW.replace(hour=2)).astimezone()
    assert of("deepseek/deepseek-flash", zoned).base.uncached_input == hour(2)


def test_names_that_clients_think_up_are_not_all_remembered() -> None:
    book = PriceBook({}, real_table(), lambda: NOW)
    for number in range(5000):
        assert book.of(f"nobody/{number}") is None
    assert len(book._found) <= 4096


FILE = """
house/qwen-8b: {input: 0, output: 0}
anthropic/claude-sonnet-5-5:
  input: 1.9
  output: 9.5
  cache_read: 0.1
  cache_write_5m: 2.375
  cache_write_1h: 3.8
  over:
    200000: {input: 3.8, output: 14.25}
    500000: {input: 7, output: 20, cache_read: 0.000001}
  service_tiers:
    batch: {input: 0.95, output: 4.75}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_operators_prices_beat_the_table(tmp_path: Path) -> None:
    book = PriceBook.load(write(tmp_path, FILE), clock=lambda: NOW)
    own = book.of(SONNET_5_5)
    assert own is not None
    assert own.source.startswith("prices_file sha256:")
    assert own.base == dollars_a_million("1.9", "0.1", "2.375", "3.8", "9.5")
    assert [step.over_input_tokens for step in own.standard] == [0, 200_000, 500_000]
    assert own.standard[1].prices == dollars_a_million("3.8", "3.8", "3.8", "3.8", "14.25")
    assert own.standard[2].prices.cache_read == PICODOLLAR
    assert own.applied(using(5), "batch").step.prices.uncached_input == Decimal("0.95e-6")
    assert own.applied(using(200_001), "default").step == own.standard[1]
    # Models that the file does not name keep the table's prices.
    assert book.of(HAIKU) == real_book().of(HAIKU)


def test_free_models_have_an_explicit_zero_price(tmp_path: Path) -> None:
    pricing = Pricing(PriceBook.load(write(tmp_path, FILE)), {}, SONNET_5_5)
    assert pricing.frontier("house/qwen-8b", using(10**6, 10**6), None).cost_usd == 0


def test_the_documented_file_holds_prices(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text(encoding="utf-8")
    prices = load_price_file(write(tmp_path, page.partition("```yaml\n")[2].partition("```")[0]))
    assert prices["house/qwen-8b"].base == dollars_a_million(*["0"] * 5)
    sol = prices["openai/gpt-6.1-sol"]
    assert [step.over_input_tokens for step in sol.standard] == [0, 272_000]
    assert list(sol.service_tiers) == ["batch"]


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_price_file(write(tmp_path, "# none yet\n")) == {}


@given(st.integers(0, 10**12), st.integers(0, 6))
def test_prices_in_the_file_are_read_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, digits: int, places: int
) -> None:
    price = Decimal(digits).scaleb(-places)
    assume(price <= 1_000_000)
    path = write(tmp_path_factory.mktemp("prices"), f"a/b: {{input: {price:f}, output: 1}}")
    assert load_price_file(path)["a/b"].base.uncached_input * 1_000_000 == price


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("a/b: {output: 1}", "a/b.input"),
        ("a/b: {input: 1}", "a/b.output"),
        ("a/b: {input: -1, output: 1}", "a/b.input"),
        ("a/b: {input: 1, output: 0.0000001}", "a/b.output"),
        ("a/b: {input: .nan, output: 1}", "a/b.input"),
        ("a/b: {input: .inf, output: 1}", "a/b.input"),
        ("a/b: {input: , output: 1}", "a/b.input"),
        ("a/b: {input: cheap, output: 1}", "a/b.input"),
        ("a/b: {input: 1, output: 1, cached: 1}", "a/b.cached"),
        ("a/b: {input: 1, output: 1, over: {0: {input: 1, output: 1}}}", "a/b.over.0.[key]"),
        ("a/b: {input: 1, output: 1, over: {9: {input: 1}}}", "a/b.over.9.output"),
        (
            "a/b: {input: 1, output: 1, service_tiers: {default: {input: 1, output: 1}}}",
            "a/b.service_tiers.default.[key]",
        ),
        ("b: {input: 1, output: 1}", "b.[key]"),
        ("- a/b", ""),
    ],
)
def test_a_file_that_holds_no_prices_stops_the_start(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_price_file(write(tmp_path, text))
    assert caught.value.field == f"ledger.prices_file.{field}".removesuffix(".")
    assert field in caught.value.message
    for inside in ("Input", "String", "dictionary", "Value error", "Field", "parse", "pattern"):
        assert inside not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "a/b: {input: 1, output: 1}\na/b: {input: 2, output: 2}",
        "a/b: {input: 1, input: 2, output: 1}",
        "a/b: {input: 1",
    ],
)
def test_a_file_that_cannot_be_read_one_way_stops_the_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        PriceBook.load(write(tmp_path, text))
    assert caught.value.field == "ledger.prices_file"
    with pytest.raises(InvalidSettings, match="cannot be read"):
        load_price_file(tmp_path / "missing.yaml")


def test_a_few_aliases_do_not_stand_for_a_billion_values(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(InvalidSettings, match=r"is not YAML: an alias \(\*name\)"):
        load_price_file(write(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize(
    "price", ["1_000", "-0", "+1", "1e3", "0x10", "\u0661", "1,5", " 1", "", "010", "00", "01.5"]
)
def test_a_price_in_another_notation_is_refused(tmp_path: Path, price: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(f"a/b: {{input: '{price}', output: 1}}", encoding="utf-8")
    with pytest.raises(InvalidSettings, match="is not a number such as"):
        load_price_file(path)
    path.write_text(
        f"a/b: {{input: 1, output: 1, over: {{'{price}': {{input: 1, output: 1}}}}}}",
        encoding="utf-8",
    )
    with pytest.raises(InvalidSettings, match="is not a number such as"):
        load_price_file(path)


def test_one_length_that_is_written_in_two_ways_is_refused(tmp_path: Path) -> None:
    step = "{input: 9, output: 9}"
    for twin in ("272000.0", "272000.00", "0272000"):
        text = f"a/b: {{input: 1, output: 1, over: {{272000: {step}, {twin}: {step}}}}}"
        with pytest.raises(InvalidSettings, match=r"written twice|is not a number such as"):
            load_price_file(write(tmp_path, text))


def test_a_name_without_its_own_entry_costs_the_models_own_price_or_the_dearest(
    tmp_path: Path,
) -> None:
    lines = ["a/b: {input: 5, output: 5}", "a/b@1: {input: 100, output: 100}",
             "a/b@2: {input: 1, output: 1}", "a/c@1: {input: 3, output: 9}",
             "a/c@2: {input: 9, output: 9}", "a/c@3: {input: 9, output: 1}"]  # fmt: skip
    wanted = {
        "a/b": 5, "a/B": 5, "a/b@3": 5, "a/B@3": 5, "a/b@1": 100, "a/B@1": 100, "a/b@2": 1,
        "a/c": 9, "a/C": 9, "a/c@4": 9, "a/c@1": 3, "a/C@1": 3,
    }  # fmt: skip
    for order in (lines, lines[::-1]):
        book = PriceBook.load(write(tmp_path, "\n".join(order)))
        found = {name: book.of(name) for name in wanted}
        inputs = {name: own and own.base.uncached_input * 10**6 for name, own in found.items()}
        assert inputs == wanted
        assert [book.of(name).base.output * 10**6 for name in ("a/c", "a/c@4")] == [9, 9]  # type: ignore[union-attr]


@pytest.mark.parametrize("twin", ["a/B", "a/b\u200b", "a/\u00adb", "a/\uff42"])
def test_model_names_that_look_the_same_are_refused(tmp_path: Path, twin: str) -> None:
    path = tmp_path / "prices.yaml"
    lines = [f'"{name}": {{input: 1, output: 1}}' for name in ("a/b", twin)]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InvalidSettings, match="nothing that can be seen"):
        load_price_file(path)


@pytest.mark.parametrize("price", ["-1e-6", "1e-13", "NaN", "Infinity"])
def test_prices_that_cannot_be_booked_are_refused(price: str) -> None:
    for name in (item.name for item in fields(TokenPrices)):
        given_ = {item.name: Decimal(1) for item in fields(TokenPrices)}
        with pytest.raises(ValueError, match=name):
            TokenPrices(**{**given_, name: Decimal(price)})


def test_steps_that_do_not_rise_from_zero_are_refused() -> None:
    for starts in ([], [1], [0, 5, 5], [0, 9, 5]):
        with pytest.raises(ValueError, match="rising"):
            ModelPrices("a/b", "test", tuple(PriceStep(start, SONNET) for start in starts))


@given(PRICES, USAGES, USAGES)
def test_within_a_step_cost_is_linear_and_its_classes_add_up(
    prices: TokenPrices, first: Usage, second: Usage
) -> None:
    both = prices.cost(plus(first, second))
    assert both == prices.cost(first) + prices.cost(second)
    assert prices.cost(first) >= 0
    assert picodollars(both) * PICODOLLAR == both
    alone = [using().model_copy(update={name: getattr(first, name)}) for name in Usage.model_fields]
    assert sum(map(prices.cost, alone)) == prices.cost(first)


@given(MODELS, USAGES, TIERS, st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_answer_costs_more_than_the_worst_case(
    prices: ModelPrices, usage: Usage, tier: str | None, more_input: int, more_output: int
) -> None:
    cost = prices.applied(usage, tier).step.prices.cost(usage)
    most_in = input_tokens(usage) + more_input
    most_out = usage.output_tokens + usage.reasoning_tokens + more_output
    assert cost <= prices.worst_case(most_in, most_out)
    assert cost <= prices.worst_case(most_in, most_out, "priority")
    standard = prices.applied(usage, "default").step.prices.cost(usage)
    assert standard <= prices.worst_case(most_in, most_out, "default")
    assert standard <= prices.worst_case(most_in, most_out, "flex")


@given(st.sampled_from([SONNET_5_5, HAIKU, ASTRA, LUNA]), USAGES, TIERS)
def test_no_answer_of_a_real_model_costs_more_than_the_worst_case(
    model: str, usage: Usage, tier: str | None
) -> None:
    priced = Pricing(real_book(), {}, model).frontier(model, usage, tier)
    most_out = usage.output_tokens + usage.reasoning_tokens
    assert priced.cost_usd <= of(model).worst_case(input_tokens(usage), most_out)


def test_the_worst_case_reaches_no_step_beyond_its_input() -> None:
    prices = of(HAIKU)
    dearest, output = prices.base.highest_input, prices.base.output
    assert prices.worst_case(100_000, 9, "default") == 100_000 * dearest + 9 * output
    assert prices.worst_case(100_001, 9, "default") == 5 * (100_001 * dearest + 9 * output)
    assert prices.worst_case(0, 0) == 0
    # The step below it may be the dearer one.
    dear, cheap = dollars_a_million(*["9"] * 5), dollars_a_million(*["1"] * 5)
    odd = ModelPrices("a/b", "test", (PriceStep(0, dear), PriceStep(100, cheap)))
    assert odd.worst_case(101, 0) == 100 * dear.uncached_input


@given(MODELS, USAGES, TIERS)
def test_a_cost_can_be_computed_again_from_its_price(
    prices: ModelPrices, usage: Usage, tier: str | None
) -> None:
    book = PriceBook({prices.model: prices}, real_table())
    priced = Pricing(book, {}, prices.model).frontier(prices.model, usage, tier)
    assert priced.price.tokens is not None
    assert priced.price.tokens.cost(usage) == priced.cost_usd
    again = Pricing(book, {}, prices.model).frontier(prices.model, usage, tier)
    assert again == priced


def test_a_price_comes_back_from_the_database_as_it_was_applied(
    ledger_url: SecretStr | None, state: Path
) -> None:
    pricing = Pricing(real_book(), {"small": Decimal("0.10")}, SONNET_5_5)
    usage = using(100_001, 77, cache_read_tokens=13, cache_write_5m_tokens=5)
    remote, local = pricing.frontier(HAIKU, usage, "batch"), pricing.local("small", 1.234567)
    database = Database(database_url(ledger_url, state))
    with database.begin() as connection:
        metadata.create_all(connection)
        for price in (remote.price, local.price):
            connection.execute(insert(prices_table), row(price))
    with database.read() as connection:
        stored = {item.id: item for item in connection.execute(select(prices_table))}
    database.close()
    found = stored[remote.price.id]
    tokens = TokenPrices(
        found.uncached_input_usd,
        found.cache_read_usd,
        found.cache_write_5m_usd,
        found.cache_write_1h_usd,
        found.output_usd,
    )
    assert tokens.cost(usage) == remote.cost_usd
    assert (found.over_input_tokens, found.service_tier) == (100_000, "batch")
    hour_usd = stored[local.price.id].replica_hour_usd
    assert replica_cost_usd(hour_usd, 1_234_567) == local.cost_usd


def row(price: Price) -> dict[str, object]:
    names = [item.name for item in fields(TokenPrices)]
    classes = {f"{name}_usd": getattr(price.tokens, name, None) for name in names}
    plain = ("id", "model", "source", "service_tier", "over_input_tokens", "replica_hour_usd")
    return {**{name: getattr(price, name) for name in plain}, **classes}


def test_a_price_has_one_id_however_it_is_written() -> None:
    prices = dollars_a_million("2", "1", "2", "2", "8")
    same = TokenPrices(*(Decimal(f"{getattr(prices, name):.12f}") for name in prices.__slots__))
    first = Price("a/b", "test", "standard", 0, prices)
    assert first.id == Price("a/b", "test", "standard", 0, same).id
    others = [
        Price("a/c", "test", "standard", 0, prices),
        Price("a/b", "tested", "standard", 0, prices),
        Price("a/b", "test", "batch", 0, prices),
        Price("a/b", "test", "standard", 1, prices),
        Price("a/b", "test", "standard", 0, SONNET),
        Price("a/b", "test", "standard", 0, None, Decimal(1)),
    ]
    assert len({price.id for price in [first, *others]}) == 7


@given(st.integers(0, 10**15), st.floats(0, 10**6))
def test_a_share_of_a_replica_costs_its_part_of_the_hour(hour: int, replica_s: float) -> None:
    hour_usd = hour * PICODOLLAR
    priced = Pricing(real_book(), {"m": hour_usd}, SONNET_5_5).local("m", replica_s)
    exact = Fraction(hour_usd) * replica_us(replica_s) / 3_600_000_000
    assert abs(Fraction(priced.cost_usd) - exact) <= Fraction(PICODOLLAR) / 2
    assert picodollars(priced.cost_usd) >= 0
    assert priced.price.replica_hour_usd == hour_usd


def test_halves_of_a_picodollar_go_to_the_even_one() -> None:
    hour_usd = PICODOLLAR * 1_800_000_000
    assert [replica_cost_usd(hour_usd, us) / PICODOLLAR for us in (1, 2, 3, 5)] == [0, 1, 2, 2]
    assert replica_cost_usd(Decimal("0.10"), 3_600_000_000) == Decimal("0.10")


def test_models_without_a_price_are_refused_with_the_fix() -> None:
    pricing = Pricing(real_book(), {"small": Decimal(0)}, "nobody/x")
    assert pricing.local("small", 5.0).cost_usd == 0
    for ask, field in [
        (lambda: pricing.local("other", 5.0), "models.replica_hour_usd"),
        (lambda: pricing.frontier("nobody/x", using(1, 1), None), "model"),
        (lambda: pricing.reference(using(1, 1)), "ledger.reference_model"),
        (lambda: check_priced([HAIKU, "nobody/x", "nobody/x"], real_book()), "ledger.prices_file"),
    ]:
        with pytest.raises(UnpricedModel) as caught:
            ask()
        assert caught.value.field == field
        assert caught.value.fix is not None
    assert "ledger.prices_file" in caught.value.fix
    assert "nobody/x: {input:" in caught.value.fix
    assert caught.value.message.count("nobody/x") == 1


def test_a_replicas_hour_that_cannot_be_booked_is_refused() -> None:
    with pytest.raises(InvalidSettings) as caught:
        Pricing(real_book(), {"small": Decimal("1e-13")}, SONNET_5_5)
    assert caught.value.field == "models.replica_hour_usd"


@given(USAGES)
def test_the_reference_pays_for_what_no_provider_would_have_cached(usage: Usage) -> None:
    pricing = Pricing(real_book(), {}, SONNET_5_5)
    tokens, output = input_tokens(usage), usage.output_tokens + usage.reasoning_tokens
    if tokens < MIN_CACHED_TOKENS:
        expected = SONNET.cost(using(tokens, output))
    else:
        expected = SONNET.cost(usage)
    assert pricing.reference(usage) == expected


def test_the_reference_at_the_least_that_is_cached() -> None:
    pricing = Pricing(real_book(), {}, SONNET_5_5)
    short = using(23, 4, cache_read_tokens=1000)
    assert pricing.reference(short) == SONNET.cost(using(1023, 4))
    long = using(24, 4, cache_read_tokens=1000)
    assert pricing.reference(long) == SONNET.cost(long)


def test_the_newest_price_change_is_the_last_one_until_today() -> None:
    model, new_year = "google/gemini-3.6-flash", datetime(2027, 1, 1, tzinfo=UTC)
    eve = new_year - timedelta(minutes=1)
    assert PriceBook.load().of(model, eve) != PriceBook.load().of(model, new_year)
    found = PriceBook.load(clock=lambda: new_year).newest_change()
    assert found is not None
    assert found[0].startswith("genai-prices ")
    assert found[1] == new_year
    earlier = PriceBook.load(clock=lambda: eve).newest_change()
    assert earlier is not None
    assert earlier[1] < new_year


def test_before_the_first_price_change_there_is_none() -> None:
    clock = datetime(2000, 1, 1, tzinfo=UTC)
    assert PriceBook.load(clock=lambda: clock).newest_change() is None
