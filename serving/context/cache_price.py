"""Whether pruning a text pays where the provider's cache would serve it. Pure."""

from serving.contracts.prices import TokenPrices


def pays_to_prune(prices: TokenPrices, *, cached: int, start: int, before: int, after: int) -> bool:
    """Return whether a request costs less with a pruned text than with the whole one.

    cached: tokens at the prompt's start that the provider's cache serves. start: tokens of the
    prompt before the text. before, after: its tokens, whole and pruned. A changed text ends the
    cached prefix: what follows it is read at the full price.
    """
    lost = max(0, cached - start)
    behind = max(0, lost - before)
    read = min(before, lost)
    whole = read * prices.cache_read + (before - read) * prices.uncached_input
    whole += behind * prices.cache_read
    pruned = (after + behind) * prices.uncached_input
    return pruned < whole
