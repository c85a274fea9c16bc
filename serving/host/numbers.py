"""Numbers on the command line: checked before work begins, with the option's name."""

import math

from serving.contracts.errors import InvalidArgument


def refuse_outside(
    option: str, value: float | None, *, least: float, most: float = math.inf
) -> None:
    """Refuse a number that is not finite or not within [least, most]. None is accepted.

    option: as it is written, `--seed`. Raises InvalidArgument.
    """
    if value is None or (math.isfinite(value) and least <= value <= most):
        return
    wanted = f"of {least:g} or more" if math.isinf(most) else f"between {least:g} and {most:g}"
    raise InvalidArgument(
        f"{option} {value!r} is not a finite number {wanted}",
        field=option.lstrip("-").replace("-", "_"),
        fix=f"pass a number {wanted}",
    )


MOST_SEED = 2**32 - 1
"""The largest seed that every random generator in use accepts."""
